"""Samples of every group follow the distribution it claims; generators of composed groups."""

import math

import pytest
import torch
from torch import Tensor

from eqtoolbox.symmetry import Equivariance
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.actions.linear import vectors
from eqtoolbox.symmetry.actions.permuting import Permute
from eqtoolbox.symmetry.actions.scaling import Degree
from eqtoolbox.symmetry.actions.tangent import tangent_of
from eqtoolbox.symmetry.each import Chain, factor
from eqtoolbox.symmetry.groups.finite import Octahedral, Sign, Symmetric
from eqtoolbox.symmetry.groups.group import Cyclic, Group
from eqtoolbox.symmetry.groups.matrices import E3, SE3, SO2, SO3, Lorentz, Orthogonal, matrix
from eqtoolbox.symmetry.groups.products import Product, Semidirect
from eqtoolbox.symmetry.groups.unbounded import Scalings, Translations
from eqtoolbox.symmetry.lie import lie_derivative
from tests.symmetry.test_group import chi_square_z


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


FINITE: list[Group] = [
    Symmetric(4), Sign(), Octahedral(), Octahedral((1, 1, 2)), Octahedral((1, 2, 3)),
    Octahedral(proper=True), Product(Sign(), Symmetric(3)),
    Semidirect(Cyclic(5), Sign(), lambda s, k: (s * k) % 5),
]  # fmt: skip


@pytest.mark.parametrize("group", FINITE, ids=lambda g: f"{g.name}-{g.order}")
def test_finite_groups_are_drawn_uniformly(group: Group) -> None:
    assert group.uniform
    assert group.exact
    assert abs(chi_square_z(group, count=6000, seed=0)) < 4.0


def close(values: Tensor, mean: float) -> bool:
    return abs(float(values.mean()) - mean) < 4 * float(values.std()) / math.sqrt(len(values))


def test_translations_are_uniform_in_their_reach_and_normal_in_euclidean_groups() -> None:
    whole = torch.tensor(Translations((2, 3)).sample(4000, seeded()), dtype=torch.float64)
    assert sorted(set(whole[:, 0].tolist())) == [-2, -1, 0, 1, 2]
    assert close(whole[:, 0], 0) and close(whole[:, 0].square(), 2.0)  # (n^2 - 1) / 12 of n = 5
    assert close(whole[:, 1].square(), 4.0)
    real = torch.tensor(Translations((2.5,), whole=False).sample(4000, seeded())).double()
    assert float(real.abs().max()) <= 2.5
    assert close(real[:, 0].square(), 2.5**2 / 3)
    for group in (E3(2.0), SE3(2.0)):
        m = torch.stack([matrix(g) for g in group.sample(3000, seeded())])
        assert close(m[:, 0, 3], 0) and close(m[:, 0, 3].square(), 4.0)
        assert close(m[:, 0, 0].square(), 1 / 3)
    k = torch.tensor(Scalings(2).sample(4000, seeded())).double()
    assert close(k.square(), 2.0)


def test_boosts_have_uniform_rapidity_and_isotropic_axes() -> None:
    m = torch.stack([matrix(g) for g in Lorentz(rapidity=1.5).sample(3000, seeded())])
    assert close(torch.arccosh(m[:, 0, 0].clamp(min=1)), 0.75)
    axis = m[:, 1:, 0] / m[:, 1:, 0].norm(dim=1, keepdim=True).clamp(min=1e-12)
    assert all(close(axis[:, i], 0) and close(axis[:, i].square(), 1 / 3) for i in range(3))
    assert float(m[:, 0, 0].min()) >= 1  # time keeps its direction
    assert torch.allclose(torch.linalg.det(m), torch.ones(3000).double())


@pytest.mark.parametrize("n", [2, 3])
def test_the_second_moments_of_haar_matrices_are_those_of_their_irreps(n: int) -> None:
    """E R_ij R_kl = delta_ik delta_jl / n for the defining representation of O(n) and SO(3)."""
    for group in (Orthogonal(n), *([SO3()] if n == 3 else [])):
        m = torch.stack([matrix(g) for g in group.sample(6000, seeded())]).flatten(1)
        second = torch.einsum("si,sj->ij", m, m) / len(m)
        spread = 4 * math.sqrt(3 / n / len(m))
        expected = torch.eye(n * n).double() / n
        assert float((second - expected).abs().max()) < spread


PLANE = Semidirect(
    Translations((1.0, 1.0), whole=False), SO2(),
    lambda h, t: tuple((matrix(h) @ torch.tensor(t, dtype=torch.float64)).tolist()),
)  # fmt: skip


def moved(g, x: Tensor) -> Tensor:
    t, turn = g
    return vectors(turn, x) + torch.tensor(t, dtype=x.dtype)


class Moved:
    """x -> R x + t of the semidirect product, with its tangent."""

    def __call__(self, g, x: Tensor) -> Tensor:
        return moved(g, x)

    def tangent(self, generator, x: Tensor) -> Tensor:
        shift, turn = generator
        if turn is not None:
            return vectors.tangent(turn, x)
        return shift.to(x).expand_as(x)


COMPOSED = [
    (Product(SO3(), Scalings(whole=False)), Chain(factor(0, vectors), factor(1, Degree(2))), 3, 4),
    (Product(Symmetric(4), SO3()), Chain(factor(0, Permute(-2)), factor(1, vectors)), 3, 3),
    (PLANE, Moved(), 2, 3),
]


@pytest.mark.parametrize(("group", "action", "d", "count"), COMPOSED)
def test_generators_of_composed_groups_are_those_of_their_factors(group, action, d, count) -> None:
    generators, x, h = group.generators(), normal(2, 4, d), 1e-5
    assert len(generators) == count
    for a in generators:
        plus, minus = group.element(a, h), group.element(a, -h)
        difference = (action(plus, x) - action(minus, x)) / (2 * h)
        exact = tangent_of(action, a, x)
        assert torch.allclose(difference, exact, rtol=1e-7, atol=1e-8)
        assert float(exact.abs().max()) > 0.1


def test_lie_derivatives_run_over_products() -> None:
    group, action, *_ = COMPOSED[0]
    claim = Equivariance(group, action, Chain(factor(0, vectors), factor(1, Degree(2))))
    x = normal(8, 4, 3)
    right = lie_derivative(lambda x: 2 * x, x, claim)
    assert [r.verdict for r in right] == ["holds"] * 4
    wrong = Equivariance(group, action, Chain(factor(0, trivial), factor(1, Degree(2))))
    assert [r.verdict for r in lie_derivative(lambda x: 2 * x, x, wrong)] == [
        "violated", "violated", "violated", "holds",
    ]  # fmt: skip


def test_discrete_groups_have_no_element_along_a_generator() -> None:
    with pytest.raises(ValueError, match="cyclic4 has no generators"):
        Cyclic(4).element(torch.eye(2), 0.1)
    assert Product(Cyclic(4), Sign()).generators() == []
