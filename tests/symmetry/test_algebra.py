"""Continuous symmetries of data against closed forms: how many, which, and when none."""

import math

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.symmetry import discover_data
from eqtoolbox.symmetry.classical import Naming, closure
from tests.symmetry.algebras import (
    area,
    basis,
    beside,
    complexified,
    copies,
    gl,
    hermitian,
    hermitian_and_volume,
    length,
    minkowski,
    quaternionic,
    realified,
    so,
    sp,
    traceless,
    u,
    unit,
)

PAIR = torch.tensor([[1.0], [-2.0], [0.5], [3.0], [1.5]])
lengths = lambda *ends: (
    lambda x: torch.cat([length(x[:, a:b]) for a, b in zip((0, *ends), ends, strict=False)], 1)
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


FUNCTIONS = [
    ("so(3)", 3, length, (300, 3)),
    ("so(2,3)", 10, minkowski(2), (300, 5)),
    ("so(1,1)", 1, minkowski(1), (200, 2)),
    ("sl(2)", 3, area, (300, 2, 2)),
    ("sp(4)", 10, area, (300, 2, 4)),
    ("sp(6)", 21, area, (500, 2, 6)),
    ("sl(3)", 8, lambda x: torch.linalg.det(x)[:, None], (300, 3, 3)),
    ("u(2)", 4, hermitian, (300, 2, 4)),
    ("u(3)", 9, hermitian, (300, 2, 6)),
    ("su(2)", 3, hermitian_and_volume, (300, 2, 4)),
    ("su(3)", 8, hermitian_and_volume, (300, 3, 6)),
    ("so(2) × so(2)", 2, lengths(2, 4), (300, 4)),
    ("so(2) × so(2) × so(2)", 3, lengths(2, 4, 6), (400, 6)),
    ("so(2) × so(3)", 4, lengths(3, 5), (300, 5)),
    ("so(3) × scaling", 4, lambda x: torch.cosine_similarity(x[:, 0], x[:, 1])[:, None],
     (300, 2, 3)),
    ("scaling", 1, lambda x: x / length(x), (300, 3)),
    ("3 of 4 directions ignored", 12, lambda x: x @ PAIR[:4].to(x), (300, 4)),
    ("4 of 5 directions ignored", 20, lambda x: (x @ PAIR.to(x)).sin(), (300, 5)),
    ("2 of 3 directions ignored", 6, lambda x: x[:, :1].square(), (300, 3)),
    ("2 of 4 directions ignored", 8, lambda x: x[:, :1] ** 3 + x[:, :1] * x[:, 1:2], (300, 4)),
    ("so(2), 1 of 3 directions ignored", 4, lambda x: length(x[:, :2]), (300, 3)),
    ("so(3), 2 of 5 directions ignored", 13, lambda x: length(x[:, :3]), (300, 5)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize(("name", "dimension", "function", "shape"), FUNCTIONS)
def test_exact_symmetries_are_counted_and_named(name, dimension, function, shape, dtype) -> None:
    found = discover_data(function, normal(*shape).to(dtype))
    assert (found.dimension, found.name) == (dimension, name)
    assert found.basis.shape == (dimension, shape[-1], shape[-1])
    flat = found.basis.flatten(1)
    assert torch.allclose(flat @ flat.T, torch.eye(dimension).double(), atol=1e-6)
    assert math.isnan(found.closure) if dimension == 1 else found.closure < 1e-5


@pytest.mark.parametrize(("name", "dimension", "function", "shape"), FUNCTIONS)
def test_every_map_found_leaves_the_function_unchanged(name, dimension, function, shape) -> None:
    x = normal(*shape).double()
    found = discover_data(function, x)
    fresh = normal(*shape, seed=1).double()
    turn = torch.linalg.matrix_exp(0.1 * torch.einsum("n,nij->ij", normal(dimension).double(),
                                                     found.basis))  # fmt: skip
    change = function(fresh @ turn.T) - function(fresh)
    assert float(change.norm()) < 1e-9 * float(function(fresh).norm())


@pytest.mark.parametrize(
    ("dimension", "function", "shape"),
    [  # each the neighbour of a function above, one symmetry or all of them broken
        (0, lambda x: length(x) + 0.5 * x[:, :1] ** 3 + x[:, 1:2].sin(), (300, 3)),
        (0, lambda x: area(x) + 0.3 * (x[:, 0] ** 3).sum(1, True), (300, 2, 4)),
        (1, lambda x: torch.cat([length(x[:, :2]), x[:, 2:] ** 3], 1), (300, 4)),
        (0, lambda x: (x @ PAIR[:3].to(x)) + 0.3 * (x**3).sum(1, True), (300, 3)),
        (0, lambda x: x[:, :1] ** 3 + 0.1 * x[:, 1:] ** 3, (300, 2)),
        (0, lambda x: torch.cat([x[:, :1], x.sin()], 1), (300, 3)),
        (0, lambda x: x**2, (300, 1)),
    ],
)
def test_broken_symmetries_are_not_found(dimension, function, shape) -> None:
    assert discover_data(function, normal(*shape)).dimension == dimension


def test_units_of_the_inputs_change_nothing() -> None:
    units = torch.tensor([1.0, 100.0, 0.01])
    found = discover_data(lambda x: length(x / units), units * normal(300, 3))
    assert (found.dimension, found.name) == (3, "so(3)")
    asymmetric = lambda x: ((x / units) ** 3).sum(1, True) + (x / units).prod(1, True)
    assert discover_data(asymmetric, units * normal(300, 3)).dimension == 0


def test_an_exact_rotation_goes_before_a_nearly_ignored_direction() -> None:
    found = discover_data(lambda x: length(x * torch.tensor([1.0, 30.0])), normal(300, 2))
    assert (found.dimension, found.name) == (1, "so(2)")


def test_maps_that_commute_with_a_linear_map_are_found() -> None:
    """W and its powers; every map commutes with the identity, and only rotations with x |x|."""
    weight = normal(3, 3)
    found = discover_data(lambda x: x @ weight.T, normal(200, 3), equivariant=True)
    assert found.dimension == 3
    w = weight.double()
    assert float((found.basis @ w - w @ found.basis).norm()) < 1e-5
    same = discover_data(lambda x: 1 * x, normal(200, 3), equivariant=True)
    assert (same.dimension, same.name) == (9, "gl(3)")
    bent = discover_data(lambda x: x * length(x), normal(200, 3), equivariant=True)
    assert (bent.dimension, bent.name) == (3, "so(3)")


def trained(target, steps: int = 1500) -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        x = torch.randn(256, 3)
        loss = (net(x) - target(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


@pytest.mark.parametrize(
    ("dimension", "name", "target"),
    [
        (3, "so(3)", lambda x: (-x.square().sum(-1, keepdim=True) / 2).exp()),
        (6, "2 of 3 directions ignored", lambda x: x[:, :1].square()),
        (0, "", lambda x: x[:, :1].sin() + x[:, 1:2] ** 2 / 2 + (x[:, 2:] + x[:, :1]).tanh()),
    ],
)
def test_learned_symmetries_are_found_by_their_gap(dimension, name, target) -> None:
    found = discover_data(trained(target), normal(300, 3))
    assert (found.dimension, found.name) == (dimension, name)
    assert (found.gap > 6.5) == (dimension > 0)
    assert found.null_gap < 1.5


def test_functions_without_symmetry_have_no_gap() -> None:
    for seed in range(16):
        d = 2 + seed % 4
        w, cubic = normal(d, 6, seed=seed), normal(d, d, d, seed=seed)
        waves = lambda x, w=w: torch.sin(1.5 * x @ w).sum(1, True)
        cubes = lambda x, c=cubic: torch.einsum("ni,nj,nk,ijk->n", x, x, x, c)[:, None]
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(d, 32), nn.Tanh(), nn.Linear(32, 1 + seed % 2))
        for function in (waves, cubes, net):
            found = discover_data(function, normal(256, d, seed=seed + 1))
            assert found.dimension == 0
            assert found.gap < 4


@pytest.mark.parametrize(
    ("function", "x", "note"),
    [
        (lambda x: (x**3).sum(1, True) + x.prod(1, True), normal(10, 3), "give more samples"),
        (lambda x: x.prod(1, True).sin(), normal(300, 3).sign(), "8 rows for 9 unknowns"),
    ],
)
def test_too_few_points_give_no_answer(function, x, note: str) -> None:
    """By chance a gap opens among few rows; equal points are one."""
    found = discover_data(function, x)
    assert found.dimension is None
    assert note in found.note


NAMED = {
    "so(2)": so(1, 1), "so(4)": so(1, 1, 1, 1), "so(5)": so(1, 1, 1, 1, 1),
    "so(1,2)": so(1, -1, -1), "so(2,2)": so(1, 1, -1, -1), "so(1,3) (Lorentz)": so(1, -1, -1, -1),
    "sl(2)": traceless(gl(2)), "sl(4)": traceless(gl(4)), "gl(3)": gl(3), "sp(4)": sp(4),
    "u(2)": realified(u(1, 1)), "su(2)": realified(traceless(u(1, 1))),
    "u(1,1)": realified(u(1, -1)), "su(1,2)": realified(traceless(u(1, -1, -1))),
    "sl(2,C)": realified(complexified(traceless(gl(2)))), "gl(2,C)": realified(complexified(gl(2))),
    "so(3,C)": realified(complexified(so(1, 1, 1))), "compact sp(2)": realified(quaternionic(2)),
    "scaling": [torch.eye(3)], "so(1,1) × so(2)": beside(so(1, -1), so(1, 1)),
    "sl(2) × u(2)": beside(traceless(gl(2)), realified(u(1, 1))),
    "so(3)": copies(so(1, 1, 1), 2), "so(2) × scaling": [*so(1, 1), torch.eye(2)],
    "so(3) × so(3) × one-parameter": [*beside(so(1, 1, 1), so(1, 1, 1)),
                                      torch.diag(torch.tensor([1.0, 1, 1, -1, -1, -1]))],
    # what no theorem names: upper triangles, motions of the plane, a shear
    "3-dimensional": [unit(2, 0, 0), unit(2, 0, 1), unit(2, 1, 1)],
    "2-dimensional": [unit(2, 0, 0) - unit(2, 1, 1), unit(2, 0, 1)],
    "3-dimensional ": [unit(3, 0, 1) - unit(3, 1, 0), unit(3, 0, 2), unit(3, 1, 2)],
    "one-parameter": [unit(3, 0, 1)],
}  # fmt: skip


@pytest.mark.parametrize(("name", "matrices"), NAMED.items(), ids=NAMED)
def test_names_are_those_of_the_algebra_in_any_coordinates(name: str, matrices) -> None:
    assert Naming(tolerance=1e-3).name(basis(matrices)) == name.strip()


@pytest.mark.parametrize("name", ["so(4)", "sl(4)", "sp(4)", "u(2)", "su(2)", "so(1,1) × so(2)"])
def test_names_bear_an_error_of_the_basis(name: str) -> None:
    assert Naming().name(basis(NAMED[name], turned=False, noise=0.05)) == name


def test_one_matrix_less_is_another_name_or_none() -> None:
    """A name is a theorem: what is smaller than the algebra that its forms allow has none."""
    for name, matrices in NAMED.items():
        whole = basis(matrices)
        if len(whole) > 1:
            assert Naming(tolerance=1e-3).name(whole[1:]) != name


def test_closure_of_sums_of_algebras_does_not_rest_on_rounding() -> None:
    """Commutators that vanish are no evidence against closure, whatever rounding makes of them."""
    commuting = basis(beside(so(1, 1), so(1, 1), so(1, 1)))
    rounded = commuting.float().double()
    assert closure(rounded) < 1e-6
    assert closure(basis([*gl(3)[1:3], gl(3)[3]])) > 0.1
