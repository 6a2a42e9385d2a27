"""First- and second-order laws and charges of every family that discovery finds, by torch.func."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from eqtoolbox.weights.discovery import find_symmetries
from eqtoolbox.weights.families.diagonal import Rescale, Scale
from eqtoolbox.weights.families.general_linear import GeneralLinear
from eqtoolbox.weights.forms.diagonal import leg
from eqtoolbox.weights.forms.gram import MatrixLeg
from eqtoolbox.weights.parameter import ContinuousSymmetry, DiscreteSymmetry, ParameterSymmetry
from tests.laws import oracle
from tests.symmetry.architectures import Gated, Lora, Rotary

Params = dict[str, Tensor]


def case(make: Callable[[], nn.Module], tokens: bool = False) -> tuple[Callable, Params]:
    torch.manual_seed(0)
    model = make().double()
    x = torch.randint(0, 20, (2, 5)) if tokens else torch.randn(12, 6, dtype=torch.float64)
    with torch.no_grad():
        y = model(x)
    targets = torch.randint(0, y.shape[-1], y.shape[:-1])

    def run(params: Params) -> tuple[Tensor, Tensor]:
        output = functional_call(model, params, (x,))
        return output, nn.functional.cross_entropy(output.flatten(0, -2), targets.flatten())

    params = {n: p.detach() + 0.1 * torch.randn_like(p) for n, p in model.named_parameters()}
    return run, params


CASES: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "relu": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), False),
    "deep linear": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), False),
    "gated": (Gated, False),
    "lora": (Lora, False),
    "gain": (
        lambda: nn.Sequential(
            nn.Linear(6, 5), nn.LayerNorm(5, eps=0), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)
        ),
        False,
    ),
    "rotary": (Rotary, True),
}
EXACT = {
    "rescale", "gated_rescale", "gain_rescale", "scale", "general_linear", "rope", "translation",
    "bias_shift",
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def found(request: pytest.FixtureRequest) -> tuple[Callable, Params, list[ParameterSymmetry]]:
    run, params = case(*CASES[request.param])
    return run, params, find_symmetries(lambda p: run(p)[1], params, run=run)


def inner(a: Params, b: Params) -> float:
    return sum(float((a[n] * b[n]).sum()) for n in a)


def size(a: Params) -> float:
    return inner(a, a) ** 0.5


def test_every_continuous_family_but_the_discrete_ones_has_a_case() -> None:
    families = set()
    for make, tokens in CASES.values():
        run, params = case(make, tokens)
        every = find_symmetries(lambda p, run=run: run(p)[1], params, run=run)
        families |= {s.family for s in every if s.status == "verified"}
    assert families >= EXACT | {"head_scale", "head_shift", "head_rotation"}


def test_laws_of_order_one_and_two_hold_and_fail_for_another_loss(found: tuple) -> None:
    run, params, symmetries = found
    loss = lambda p: run(p)[1]
    spoilt = lambda p: loss(p) + 0.1 * sum(t.pow(4).sum() for t in p.values())
    checked = 0
    for symmetry in symmetries:
        if not isinstance(symmetry, ContinuousSymmetry) or symmetry.equivariant:
            continue
        if symmetry.status != "verified":
            continue
        torch.manual_seed(1)
        c = torch.randn(symmetry.dimension, dtype=torch.float64)
        zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        orbit = lambda s, sym=symmetry, c=c: sym.transform(params, s * c)
        _, slope = torch.func.jvp(orbit, (zero,), (one,))
        tangent = {n: torch.zeros_like(p) for n, p in params.items()}
        tangent.update(symmetry.tangent(params, c))
        assert all(torch.allclose(slope[n], tangent[n], atol=1e-12) for n in slope)

        def defect(of: Callable, tangent: Params = tangent, s: object = symmetry, c: Tensor = c):
            with sdpa_kernel(SDPBackend.MATH):
                g, product = torch.func.jvp(torch.func.grad(of), (params,), (tangent,))
            pulled = s.pullback(params, c, g)
            total = {n: h + pulled.get(n, 0) for n, h in product.items()}
            first = abs(inner(g, tangent)) / (size(g) * size(tangent))
            return first, size(total) / (size(tangent) * size(g))

        first, second = defect(loss)
        assert first < 1e-12, symmetry
        assert second < 1e-10, symmetry
        assert max(defect(spoilt)) > 1e-4
        checked += 1
    assert checked >= 2


def test_lengths_are_those_of_the_tangents_in_every_family(found: tuple) -> None:
    _, params, symmetries = found
    for s in symmetries:
        if isinstance(s, ContinuousSymmetry):
            slow = oracle.lengths(s, params)
            assert s.lengths(params).shape == (s.dimension,)
            assert torch.allclose(s.lengths(params), slow, rtol=1e-12, atol=1e-15), s


def test_lengths_count_entries_that_two_legs_move_once() -> None:
    """A recurrent matrix: rows by e^A and columns by e^-A, so that its diagonal stays."""
    torch.manual_seed(0)
    params = {"w": torch.randn(3, 3, dtype=torch.float64)}
    units, ones = torch.arange(3), torch.ones(3, dtype=torch.float64)
    legs = (leg("w", (3, 3), 0, units, units, ones), leg("w", (3, 3), 1, units, units, -ones))
    rescale = Rescale(name="w", dimension=3, legs=legs)
    both = rescale.charge_scale(params).mul(2).sqrt()  # as if the legs did not meet
    every = torch.arange(3)[None, None]
    meeting = (MatrixLeg("w", 0, every, 1), MatrixLeg("w", 1, every, -1))
    linear = GeneralLinear(name="w", dimension=9, legs=meeting)
    for symmetry in (rescale, linear):
        slow = oracle.lengths(symmetry, params)
        assert torch.allclose(symmetry.lengths(params), slow, rtol=1e-12)
    assert not torch.allclose(rescale.lengths(params), both, rtol=0.01)


def test_lengths_follow_the_rates_of_the_legs() -> None:
    torch.manual_seed(0)
    params = {"w": torch.randn(3, 2, dtype=torch.float64)}
    units = torch.arange(3)
    one = leg("w", (3, 2), 0, units, units, torch.full((3,), 2.0, dtype=torch.float64))
    scale = Scale(name="w", dimension=3, legs=(one,))
    assert torch.allclose(scale.lengths(params), 2 * params["w"].norm(dim=1), rtol=1e-12)
    assert not torch.allclose(
        scale.lengths(params), scale.charge_scale(params).mul(2).sqrt(), rtol=0.1
    )


def test_charges_are_integrals_of_their_pairing(found: tuple) -> None:
    _, params, symmetries = found
    direction = {n: torch.randn_like(p) for n, p in params.items()}
    moved = {n: p + direction[n] for n, p in params.items()}
    for symmetry in symmetries:
        if not isinstance(symmetry, ContinuousSymmetry):
            continue
        charge = symmetry.charge(params)
        assert charge.shape == (symmetry.charges,)
        change = symmetry.charge(moved) - charge
        terms = symmetry.pairing(params, direction) + symmetry.finite_step(direction)
        assert torch.allclose(change, terms, atol=1e-10)
        assert bool((charge.abs() <= symmetry.charge_scale(params) + 1e-9).all())


def test_general_linear_conserves_as_many_numbers_as_there_are_symmetric_matrices() -> None:
    """d (d + 1) / 2 independent ones for a linear pair (Marcotte et al. 2023), if wide enough."""
    run, params = case(lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 5)))
    symmetry = next(
        s for s in find_symmetries(lambda p: run(p)[1], params) if isinstance(s, GeneralLinear)
    )
    gradients = torch.func.jacrev(symmetry.charge)(params)
    rows = torch.cat([g.reshape(symmetry.charges, -1) for g in gradients.values()], dim=1)
    assert int(torch.linalg.matrix_rank(rows)) == symmetry.charges == 10


def test_discrete_elements_are_orthogonal_involutions_with_covariant_hessian(found: tuple) -> None:
    run, params, symmetries = found
    loss = lambda p: run(p)[1]
    for symmetry in symmetries:
        if not isinstance(symmetry, DiscreteSymmetry):
            continue
        v = {n: torch.randn_like(p) for n, p in params.items()}
        T = lambda p, s=symmetry: {**p, **s.element(p, 0)}
        assert all(torch.equal(T(T(v))[n], v[n]) for n in v)
        assert size(T(v)) == pytest.approx(size(v))
        gradient = torch.func.grad(loss)
        with sdpa_kernel(SDPBackend.MATH):
            _, here = torch.func.jvp(gradient, (params,), (v,))
            _, there = torch.func.jvp(gradient, (T(params),), (T(v),))
        back = T(there)
        assert size({n: back[n] - here[n] for n in v}) < 1e-10 * size(here)
        middle = {n: (p + T(params)[n]) / 2 for n, p in params.items()}
        assert float(symmetry.distance(middle)[0]) < 1e-14
        assert float(symmetry.distance(params)[0]) > 1e-3
