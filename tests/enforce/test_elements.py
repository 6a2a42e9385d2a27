"""Means over groups: rules are exact to their degree only; samples fall as 1 / sqrt(K)."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.enforce.elements import rule
from eqtoolbox.symmetry import Chain, Equivariance
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.actions.linear import Tensors, vectors
from eqtoolbox.symmetry.actions.scaling import Parity
from eqtoolbox.symmetry.each import factor
from eqtoolbox.symmetry.groups import O2, O3, SO2, SO3, Orthogonal, Product, Sign
from eqtoolbox.symmetry.groups.matrices import matrix

COMPACT = {
    "so2": (SO2(), 2), "o2": (O2(), 2), "so3": (SO3(), 3), "o3": (O3(), 3),
    "o1": (Orthogonal(1), 1),
}  # fmt: skip


def entries(elements: Any, degree: int) -> Tensor:
    """Entries of the degree-fold tensor power of every element, (elements, n^2 degree)."""
    found = []
    for g in elements:
        power = torch.ones(1, 1, dtype=torch.float64)
        for _ in range(degree):
            power = torch.kron(power, matrix(g))
        found.append(power.flatten())
    return torch.stack(found)


@pytest.mark.parametrize("name", COMPACT)
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_a_rule_integrates_polynomials_of_its_degree(name: str, degree: int) -> None:
    """Independent: the Haar mean of R^(x k) is the projector onto its invariants, P^2 = P = P^T,
    whose trace counts them: the mean of the k-th power of the character."""
    group, n = COMPACT[name]
    found = rule(group, degree)
    weights = torch.tensor(found.weights, dtype=torch.float64)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-15) and bool((weights > 0).all())
    for k in range(1, degree + 1):
        mean = (weights @ entries(found.elements, k)).reshape(n**k, n**k)
        assert torch.allclose(mean @ mean, mean, atol=1e-13) and torch.allclose(
            mean, mean.T, atol=1e-13
        )
        assert float(mean.trace()) == pytest.approx(INVARIANTS[name](k), abs=1e-12)


INVARIANTS = {  # how many invariants the k-fold tensors have, from the literature
    "so2": lambda k: math.comb(k, k // 2) if k % 2 == 0 else 0,
    "o2": lambda k: math.comb(k, k // 2) / 2 if k % 2 == 0 and k else 0,
    "so3": lambda k: {1: 0, 2: 1, 3: 1, 4: 3}[k],  # the Riordan numbers
    "o3": lambda k: {1: 0, 2: 1, 3: 0, 4: 3}[k],
    "o1": lambda k: 1 - k % 2,
}


@pytest.mark.parametrize("name", ["so2", "so3"])
def test_a_rule_of_a_lower_degree_is_wrong(name: str) -> None:
    rules = (rule(COMPACT[name][0], degree) for degree in (1, 2))
    means = [torch.tensor(r.weights, dtype=torch.float64) @ entries(r.elements, 2) for r in rules]
    assert not torch.allclose(*means, atol=0.1)


@pytest.mark.parametrize(("group", "degree", "count"), [
    (SO2(), 5, 6), (O2(), 5, 12), (SO3(), 1, 4), (SO3(), 3, 32), (O3(), 2, 36),
    (Product(SO2(), Sign()), 3, 8), (Product(SO2(), SO3()), 1, 8), (Orthogonal(1), 0, 2),
])  # fmt: skip
def test_a_rule_costs_what_is_said(group: Any, degree: int, count: int) -> None:
    found = rule(group, degree)
    assert len(found.elements) == count == len(set(found.elements))


def cubic(x: Tensor) -> Tensor:
    """Degree 3 in a vector, a vector: not equivariant."""
    parts = [x[:, 0] ** 2 * (x[:, 1] + x[:, 0]), x[:, -1] ** 3 + x[:, 0], x.prod(1)]
    return torch.stack(parts[: x.shape[1]], 1)


def square(x: Tensor) -> Tensor:
    """Degree 2 in a vector, a matrix: not equivariant."""
    return torch.diag_embed(x**2) + torch.einsum("bi,bj->bij", x, x.roll(1, 1))


@pytest.mark.parametrize("group", [SO2(), O2(), SO3(), O3()], ids=lambda g: g.name)
def test_a_polynomial_is_averaged_exactly_at_its_degree_and_refused_below(group: Any) -> None:
    claim = Equivariance(group, vectors, vectors)
    x = torch.randn(8, group.n, dtype=torch.float64)
    made = eq.enforce.averaged(cubic, claim, x, degree=4)  # three of f and one of the output
    assert made.report.result.verdict == "holds" and not made.report.result.enumerated
    with pytest.raises(ValueError, match="larger degree"):
        eq.enforce.averaged(cubic, claim, x, degree=3 if group.n == 2 else 2)
    higher = eq.enforce.averaged(cubic, claim, x, degree=6)
    assert torch.allclose(made(x), higher(x), atol=1e-13)


def test_products_and_tensors_are_averaged_too() -> None:
    both = Product(SO3(), Sign())
    claim = Equivariance(
        both, Chain(factor(0, vectors), factor(1, Parity())), factor(0, Tensors(2))
    )
    x = torch.randn(8, 3, dtype=torch.float64)
    assert eq.enforce.averaged(square, claim, x, degree=4).report.result.verdict == "holds"
    with pytest.raises(ValueError, match="larger degree"):
        eq.enforce.averaged(square, claim, x, degree=1)


def test_a_network_without_a_degree_is_refused() -> None:
    claim = Equivariance(SO2(), vectors, trivial)
    net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    with pytest.raises(ValueError, match=r"no such degree.*sampled"):
        eq.enforce.averaged(net, claim, torch.randn(8, 2, dtype=torch.float64), degree=8)


def test_a_sample_of_elements_says_what_it_breaks_and_breaks_less_when_it_is_larger() -> None:
    claim = Equivariance(SO3(), vectors, trivial)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    x = torch.randn(32, 3, dtype=torch.float64)
    error = lambda count, seed: (
        eq.enforce.sampled(net, claim, x, elements=count, seed=seed).report.result.mean_square
        ** 0.5
    )
    few, many = (sum(error(k, s) for s in range(8)) / 8 for k in (4, 64))
    assert 2.5 < few / many < 6.5  # 4 expected
    made = eq.enforce.sampled(net, claim, x, elements=4)
    assert made.report.result.verdict == "violated" and "±" in str(made.report)
    assert "(violated)" in repr(made)
    assert torch.equal(made(x), eq.enforce.sampled(net, claim, elements=4)(x))
    assert not torch.equal(made(x), eq.enforce.sampled(net, claim, elements=4, seed=1)(x))


def test_a_rule_gives_the_same_mean_from_wherever_it_starts() -> None:
    """What makes an average equivariant; a rule of degree 2 does not for the third power."""
    (turn,) = SO3().sample(1, torch.Generator().manual_seed(0))
    for degree, same in ((3, True), (2, False)):
        found = rule(SO3(), degree)
        weights = torch.tensor(found.weights, dtype=torch.float64)
        moved = [SO3().compose(g, turn) for g in found.elements]
        means = (weights @ entries(some, 3) for some in (moved, found.elements))
        assert torch.allclose(*means, atol=1e-13) is same
