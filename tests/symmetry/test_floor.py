"""The noise floor of programs of many steps: rounding that adds up is no violation."""

import pytest
import torch
from torch import Tensor

from eqtoolbox.demos.burgers import BOOSTS, STANDING, evolve, waves
from eqtoolbox.symmetry import EquivarianceResult, equivariance_error
from eqtoolbox.symmetry.floor import Rounding, few, noise


def solver(steps: int):
    return lambda u: evolve(u, steps=steps)


U = waves(8, torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def long() -> EquivarianceResult:
    return equivariance_error(solver(1000), U, BOOSTS, samples=3)


def test_a_solver_of_a_thousand_steps_in_float64_is_not_cried_wolf(long) -> None:
    short = equivariance_error(solver(20), U, BOOSTS, samples=3)
    for result in (short, long):
        assert result.verdict == "holds"
        assert result.relative_error < result.floor < 50 * result.relative_error
    assert long.floor > 10 * short.floor


def test_the_floor_of_a_solver_hides_no_violation() -> None:
    slightly = lambda u: evolve(u, steps=200) + 1e-11 * u**2
    assert equivariance_error(slightly, U, BOOSTS, samples=3).verdict == "violated"
    assert equivariance_error(solver(200), U, STANDING, samples=3).verdict == "violated"


def test_one_nudge_of_the_input_would_cry_wolf(long) -> None:
    """Control: viscosity forgets the input's rounding, but not that of the last steps."""
    nudge = torch.randn(U.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near, f = U * (1 + torch.finfo(torch.float64).eps * nudge), solver(1000)
    floor = float((f(near) - f(U)).norm() / f(U).norm())
    assert long.relative_error > 10 * floor


def test_chance_rounding_leaves_whole_numbers_views_and_copies_alone() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    with Rounding(torch.Generator().manual_seed(0)) as rounding:
        counts, copied = (x > 0).float().sum(1), x.flip(0)[:, 1:].t().clone()
        product = x @ x.t()
        y = x.clone()
        y.mul_(2.0)
    assert torch.equal(counts, (x > 0).float().sum(1))
    assert torch.equal(copied, x.flip(0)[:, 1:].t())
    assert torch.equal(y, 2 * x)
    assert 0 < float((product - x @ x.t()).abs().max()) < 1e-6
    assert rounding.eps == torch.finfo(torch.float32).eps


@pytest.mark.parametrize("length", [10, 1000])
def test_the_floor_is_that_of_a_sum_of_roundings(length: int) -> None:
    """x passes n multiplications by nearly one: n roundings of up to eps / 2, eps sqrt(n / 12)."""

    def f(x: Tensor) -> Tensor:
        for _ in range(length):
            x = x * 1.0000001
        return x

    x = torch.rand(2048, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3
    found = noise(f, x, f(x), torch.Generator().manual_seed(0))
    answer, note = found.answer, found.note
    eps = torch.finfo(torch.float64).eps
    expected = eps * (1 + length / 12) ** 0.5
    assert 0.5 < answer / expected < 2
    assert note == ""
    assert few(len(x)) == 8
