"""The flow: the solver is Navier-Stokes and symmetric to rounding; surrogates only if built so."""

import math
from dataclasses import replace

import pytest
import torch

from eqtoolbox.command.demo.training import train
from eqtoolbox.demos.flow import (
    DEMO,
    SCALARS,
    SHIFTS,
    SIZE,
    TURNS,
    VISCOSITY,
    FlowSurrogate,
    Fluid,
    load,
)
from eqtoolbox.symmetry import equivariance_error
from eqtoolbox.symmetry.testing import assert_equivariant

FLUID = Fluid()


@pytest.fixture(scope="module")
def flows() -> torch.Tensor:
    return FLUID.random(6, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("claim", [TURNS, SHIFTS], ids=lambda c: c.name)
def test_the_solver_is_equivariant_to_rounding(flows, claim) -> None:
    assert assert_equivariant(FLUID.evolve, flows, claim).relative_error < 1e-14


def test_a_turn_that_leaves_the_arrows_behind_is_no_symmetry(flows) -> None:
    with pytest.raises(AssertionError, match="violated"):
        assert_equivariant(FLUID.evolve, flows, SCALARS)


def test_taylor_green_vortices_decay_as_the_closed_form_says() -> None:
    x = 2 * math.pi * torch.arange(SIZE, dtype=torch.float64) / SIZE
    right, down = x.expand(SIZE, SIZE), x[:, None].expand(SIZE, SIZE)
    u = torch.stack([right.cos() * down.sin(), -right.sin() * down.cos()])[None]
    later = FLUID.evolve(u, time=2.0)
    assert torch.allclose(later, u * math.exp(-2 * VISCOSITY * 2.0), atol=1e-13)


def test_the_solver_is_of_fourth_order_and_galilean_invariant_to_that_order(flows) -> None:
    fine = FLUID.evolve(flows, steps=80)
    errors = [float((FLUID.evolve(flows, steps=n) - fine).norm()) for n in (10, 20)]
    assert 12 < errors[0] / errors[1] < 20
    wind = torch.tensor([2 * math.pi / SIZE / 0.5 * 3, 0.0], dtype=torch.float64)  # three cells
    boosted = FLUID.evolve(flows + wind[:, None, None], steps=80) - wind[:, None, None]
    assert (boosted - torch.roll(fine, 3, -1)).norm() / fine.norm() < 1e-5


def test_energy_falls_by_viscosity_alone_and_fields_stay_without_divergence(flows) -> None:
    """dE/dt = -2 nu (mean of w^2) / 2, here by one short step."""
    later = FLUID.evolve(flows, time=1e-4, steps=1)
    energy = lambda u: u.square().sum(1).mean((1, 2)) / 2
    lost = (energy(flows) - energy(later)) / 1e-4
    enstrophy = FLUID.vorticity(flows).square().mean((1, 2))
    assert torch.allclose(lost, VISCOSITY * enstrophy, rtol=1e-3)
    swapped = torch.stack([later[:, 1], -later[:, 0]], dim=1)  # its curl is minus the divergence
    assert FLUID.vorticity(swapped).abs().max() < 1e-12


@pytest.mark.slow
def test_surrogates_keep_what_they_are_built_to_keep() -> None:
    data, short = load(), replace(DEMO, batch=4, watched=8)
    ends = {
        entry: train(short, entry, data, steps=25, schedule=24)
        for entry in ("plain", "periodic", "averaged")
    }
    verdicts = {
        name: {entry: end.errors[name].verdict for entry, end in ends.items()}
        for name in (TURNS.name, SHIFTS.name)
    }
    assert set(verdicts[SHIFTS.name].values()) == {"holds", "violated"}
    assert verdicts[SHIFTS.name]["plain"] == "violated"
    assert [e for e, v in verdicts[TURNS.name].items() if v == "holds"] == ["averaged"]
    assert "pads with zeros" in ends["plain"].errors[SHIFTS.name].note
    assert ends["averaged"].score < ends["periodic"].score < ends["plain"].score


def test_a_surrogate_turned_as_a_scalar_image_is_not_what_averaging_promises(flows) -> None:
    averaged = DEMO.entries["averaged"].network()
    u = flows.float()
    assert equivariance_error(averaged, u, TURNS).verdict == "holds"
    assert equivariance_error(averaged, u, SCALARS).verdict == "violated"
    assert equivariance_error(FlowSurrogate(), u, TURNS).verdict == "violated"
