"""Functions whose symmetries are known exactly: linear maps, softmax, layer norm, sort, argmax."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eqtoolbox.symmetry import Equivariance, equivariance_error
from eqtoolbox.symmetry.actions.action import Action, dihedral, quarter_turn, trivial
from eqtoolbox.symmetry.actions.permuting import Permute
from eqtoolbox.symmetry.actions.scaling import Degree
from eqtoolbox.symmetry.algebra import discover_data
from eqtoolbox.symmetry.groups.finite import Symmetric
from eqtoolbox.symmetry.groups.group import Cyclic, Dihedral, Group
from eqtoolbox.symmetry.groups.unbounded import Scalings, Translations
from eqtoolbox.symmetry.lie import lie_derivative


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def white(size: int) -> Tensor:
    """Images with mean zero and identity covariance: both signs of every pixel."""
    basis = size * torch.eye(size * size, dtype=torch.float64).reshape(-1, 1, size, size)
    return torch.cat([basis, -basis])


def character(action: Action, g, size: int) -> float:
    basis = torch.eye(size * size, dtype=torch.float64).reshape(-1, size, size)
    moved = basis if action is trivial else action(g, basis)
    return float((moved * basis).sum())


@pytest.mark.parametrize(
    ("group", "action", "out"),
    [
        (Cyclic(4), quarter_turn, quarter_turn), (Cyclic(4), quarter_turn, trivial),
        (Dihedral(4), dihedral, dihedral), (Dihedral(4), dihedral, trivial),
    ],
)  # fmt: skip
def test_the_equivariant_fraction_of_all_matrices_is_dim_hom_over_their_dimension(
    group: Group, action: Action, out: Action
) -> None:
    """Mean of |PW|^2 / |W|^2 over an orthonormal basis of matrices is tr P / (d_in d_out).

    dim Hom is counted by characters; a layer on white images has 1 - |PW|^2 / |W|^2 as its orbit
    variance.
    """
    size, d, x = 3, 9, white(3)
    claim = Equivariance(group, action, out)
    kept = 0.0
    for i, j in product(range(d), repeat=2):
        weight = torch.zeros(d, d, dtype=torch.float64)
        weight[i, j] = 1.0
        layer = lambda x, w=weight: (x.flatten(1) @ w.T).reshape(-1, 1, size, size)
        kept += 1.0 - equivariance_error(layer, x, claim, check=False).orbit_variance
    counts = [character(action, g, size) * character(out, g, size) for g in group.elements()]
    hom = sum(counts) / len(counts)
    assert kept / d**2 == pytest.approx(hom / d**2, rel=1e-12)
    assert hom == pytest.approx(round(hom), abs=1e-12)


class Raised:
    """x -> x + s, the same for all entries: what softmax and layer norm ignore."""

    def __call__(self, g: tuple[float, ...], x: Tensor) -> Tensor:
        return x + g[0]

    def tangent(self, generator: Tensor, x: Tensor) -> Tensor:
        return torch.ones_like(x) * float(generator)


PERMUTED, RAISED = Permute(-1), Raised()
SHIFTS = Translations((2.0,), whole=False)
ANY = Scalings(whole=False)
LAYER_NORM = lambda x: F.layer_norm(x, (5,), eps=0.0)
SORT = lambda x: x.sort(-1).values
ARGMAX = lambda x: F.one_hot(x.argmax(-1), 5).double()
SOFTMAX = lambda x: x.softmax(-1)

LAWS = [
    (SOFTMAX, Symmetric(5), PERMUTED, PERMUTED, True), (SOFTMAX, SHIFTS, RAISED, trivial, True),
    (SOFTMAX, ANY, Degree(1), trivial, False), (SOFTMAX, Symmetric(5), PERMUTED, trivial, False),
    (LAYER_NORM, Symmetric(5), PERMUTED, PERMUTED, True),
    (LAYER_NORM, SHIFTS, RAISED, trivial, True), (LAYER_NORM, ANY, Degree(1), trivial, True),
    (LAYER_NORM, ANY, Degree(1), Degree(1), False),
    (SORT, Symmetric(5), PERMUTED, trivial, True), (SORT, SHIFTS, RAISED, RAISED, True),
    (SORT, ANY, Degree(1), Degree(1), True), (SORT, SHIFTS, RAISED, trivial, False),
    (ARGMAX, Symmetric(5), PERMUTED, PERMUTED, True), (ARGMAX, SHIFTS, RAISED, trivial, True),
    (ARGMAX, Symmetric(5), PERMUTED, trivial, False),
]  # fmt: skip


@pytest.mark.parametrize(("function", "group", "act", "out", "holds"), LAWS)
def test_known_functions_have_their_symmetries_and_no_others(function, group, act, out, holds):
    x, claim = normal(16, 5), Equivariance(group, act, out)
    assert equivariance_error(function, x, claim).verdict == ("holds" if holds else "violated")
    if not group.generators():
        return
    (found,) = lie_derivative(function, x, claim)
    if function is ARGMAX:  # its derivative is zero everywhere and says nothing
        assert found.verdict == "unresolved"
        assert "its zero is no invariance" in found.note
    else:
        assert found.verdict == ("holds" if holds else "violated")


def test_layer_norm_with_an_epsilon_is_not_of_degree_zero() -> None:
    rounded = lambda x: F.layer_norm(x, (5,), eps=1e-5)
    claim = Equivariance(ANY, Degree(1), trivial)
    assert equivariance_error(rounded, normal(16, 5), claim).verdict == "violated"


def test_discovery_of_equivariance_finds_rotations_and_not_the_scaling() -> None:
    """x |x|^2 commutes with so(3); it is homogeneous of degree 3, not 1."""
    cubes = lambda x: x * x.square().sum(-1, keepdim=True)
    found = discover_data(cubes, normal(200, 3), equivariant=True)
    assert (found.dimension, found.name) == (3, "so(3)")
    assert discover_data(cubes, normal(200, 3)).dimension == 0
    mixed = discover_data(lambda x: x @ normal(3, 3, seed=1) * x, normal(200, 3), equivariant=True)
    assert mixed.dimension == 0
    with pytest.raises(ValueError, match="vectors of length 3, got 1"):
        discover_data(lambda x: x.sum(1, keepdim=True), normal(200, 3), equivariant=True)


@pytest.mark.parametrize("function", [torch.round, lambda x: x.argsort(-1).double()])
def test_what_has_no_derivative_is_not_identifiable(function) -> None:
    found = discover_data(function, normal(200, 3))
    assert found.dimension is None
    assert "or has no derivative" in found.note
