"""Burgers: the solver is exact and obeys Galileo, and so does a network in the moving frame."""

import pytest
import torch
from torch import Tensor

from eqtoolbox.command.demo.training import train
from eqtoolbox.demos.burgers import (
    BOOSTS,
    DEMO,
    SHIFTS,
    STANDING,
    STEP,
    TIME,
    VISCOSITY,
    evolve,
    laws,
    waves,
)
from eqtoolbox.symmetry import Equivariance, Translations, equivariance_error, lie_derivative
from eqtoolbox.symmetry.actions.boosts import Boost
from eqtoolbox.symmetry.actions.resampling import FourierShift
from eqtoolbox.symmetry.testing import assert_equivariant


def finer(u: Tensor, n: int) -> Tensor:
    """The same wave on n points."""
    return torch.fft.irfft(torch.fft.rfft(u), n=n) * (n / u.shape[-1])


def cole_hopf(u: Tensor, time: float) -> Tensor:
    """The exact solution: phi = exp(-int u / 2 nu) obeys the heat equation, u = -2 nu phi'/phi."""
    n = u.shape[-1]
    k = torch.fft.rfftfreq(n, 1 / n, dtype=torch.float64)
    integral = torch.where(k > 0, torch.fft.rfft(u) / (1j * k.clamp(min=1)), 0)
    phi = torch.fft.rfft(torch.exp(-torch.fft.irfft(integral, n=n) / (2 * VISCOSITY)))
    phi = phi * torch.exp(-VISCOSITY * k**2 * time)
    return -2 * VISCOSITY * torch.fft.irfft(1j * k * phi, n=n) / torch.fft.irfft(phi, n=n)


def test_the_solver_is_the_exact_solution_of_cole_and_hopf() -> None:
    fine = finer(waves(4, torch.Generator().manual_seed(0)), 512)
    truth = cole_hopf(fine, TIME)
    assert (evolve(fine, steps=2000) - truth).norm() / truth.norm() < 1e-9
    shocked = evolve(fine, steps=2000, time=0.45)
    assert (shocked - truth).norm() / truth.norm() > 1e-2


def test_the_solver_obeys_galileo_to_1e_12_and_commutes_with_shifts() -> None:
    u = waves(8, torch.Generator().manual_seed(1))
    for claim in (BOOSTS, SHIFTS):
        assert assert_equivariant(evolve, u, claim, tolerance=1e-12).relative_error < 1e-12
    with pytest.raises(AssertionError, match="violated"):
        assert_equivariant(evolve, u, STANDING)


def winds(cells: int) -> Equivariance:
    """Boosts by any velocity, which have a Lie derivative."""
    return Equivariance(
        Translations((8.0,), whole=False), Boost(STEP), Boost(STEP, cells=cells), name="winds"
    )


def test_the_lie_derivative_of_the_solver_along_boosts_is_0_to_rounding() -> None:
    u = waves(8, torch.Generator().manual_seed(1))
    (kept,) = lie_derivative(evolve, u, winds(1))
    assert kept.verdict == "holds"
    assert kept.rate < 1e-13
    assert equivariance_error(evolve, u, winds(1)).relative_error < 1e-12


@pytest.mark.parametrize("cells", [0, -1])
def test_along_a_wrong_boost_it_is_the_slope_that_was_not_carried(cells: int) -> None:
    """J X - Y = (cells - 1) dx du/dx of the solution, exactly."""
    u = waves(8, torch.Generator().manual_seed(1))
    (broken,) = lie_derivative(evolve, u, winds(cells))
    slope = FourierShift((-1,)).tangent(torch.tensor([1.0 - cells]), evolve(u))
    assert broken.verdict == "violated"
    assert broken.rate == pytest.approx(float(slope.norm() / len(u) ** 0.5), rel=1e-10)


def test_a_network_in_the_moving_frame_obeys_galileo_and_the_others_learn_it_at_best() -> None:
    data = DEMO.load()
    assert [law.result.verdict for law in laws(data)] == ["holds", "violated", "holds"]
    ends = {entry: train(DEMO, entry, data, steps=101, schedule=100) for entry in DEMO.entries}
    errors = {entry: end.errors[BOOSTS.name] for entry, end in ends.items()}
    verdicts = {entry: error.verdict for entry, error in errors.items()}
    assert verdicts == {"plain": "violated", "augmented": "violated", "moving": "holds"}
    assert {end.errors[SHIFTS.name].verdict for end in ends.values()} == {"holds"}
    assert errors["augmented"].value < errors["plain"].value
    assert ends["moving"].score < 0.5 * min(ends["plain"].score, ends["augmented"].score)
