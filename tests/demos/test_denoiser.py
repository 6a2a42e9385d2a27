"""The denoiser: what it makes of noise is as symmetric as it is, seen on the points themselves."""

import json
import math

import pytest
import torch
from torch import nn

from eqtoolbox.command.demo.closing import closing
from eqtoolbox.command.demo.training import Outcome, train
from eqtoolbox.demos.denoiser import (
    DEMO,
    THIRDS,
    Denoiser,
    drawn,
    laws,
    load,
    made,
    noised,
    pinwheel,
    points,
    turn,
)
from eqtoolbox.demos.scores import energy_distance
from eqtoolbox.enforce import averaged
from eqtoolbox.symmetry import equivariance_error
from eqtoolbox.symmetry.actions.action import check_action

TURNED, TRUE = list(made(averaged(Denoiser(4), THIRDS)))


def test_the_pinwheel_keeps_thirds_and_not_halves() -> None:
    thirds, halves = laws(load())
    assert (thirds.result.verdict, thirds.control) == ("holds", False)
    assert (halves.result.verdict, halves.control) == ("violated", True)
    check_action(THIRDS.group, turn, torch.randn(4, 3, dtype=torch.float64))


def test_noise_has_the_size_that_it_is_told_to_have() -> None:
    clean = torch.zeros(50, 2)
    x, y = noised(clean, 400, torch.Generator().manual_seed(0))
    assert torch.equal(x[:, 2], y[:, 2]) and not y[:, :2].any()
    assert float((x[:, :2] / x[:, 2:].exp()).std()) == pytest.approx(1.0, abs=0.02)


class Gaussian(nn.Module):
    """The best denoiser of points of a normal distribution of standard deviations (a, b)."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.square = torch.tensor([a, b]).square()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :2] * self.square / (self.square + torch.exp(2 * x[:, 2:]))


def test_the_way_from_noise_ends_in_the_distribution_of_the_denoiser() -> None:
    """Of a normal law it is exact: each coordinate is scaled by sqrt((a^2 + s^2) / (a^2 + S^2))."""
    start = 3.0 * torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([math.sqrt((a * a + 0.03**2) / (a * a + 9.0)) for a in (1.0, 0.3)])
    assert torch.allclose(points(Gaussian(1.0, 0.3)), start * scale, rtol=0.02, atol=1e-3)


def test_points_are_symmetric_exactly_when_the_denoiser_is() -> None:
    round_, flat = made(Gaussian(0.6, 0.6))[TURNED], made(Gaussian(1.0, 0.3))[TURNED]
    assert round_.verdict == "holds" and round_.value < round_.floor
    assert flat.verdict == "violated" and flat.value > 3 * flat.floor


def test_the_averaged_denoiser_makes_symmetric_points_and_the_plain_one_does_not() -> None:
    data = load()
    ends = {e: train(DEMO, e, data, steps=150, schedule=149) for e in ("plain", "averaged")}
    assert {e: end.errors["thirds"].verdict for e, end in ends.items()} == {
        "plain": "violated",
        "averaged": "holds",
    }
    own = {e: made(end.network)[TURNED] for e, end in ends.items()}
    assert own["averaged"].verdict == "holds"
    assert own["plain"].verdict == "violated" and own["plain"].value > own["averaged"].floor
    x = data.test[0][:64]
    assert equivariance_error(ends["averaged"].network, x, THIRDS).verdict == "holds"


def test_energy_distance_sees_a_shift_and_agrees_with_the_sum_over_pairs() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = pinwheel(100, rng), pinwheel(100, rng) + 0.5
    apart = lambda x, y: torch.stack([(p - q).norm() for p in x for q in y]).sum()
    within = (apart(a, a) + apart(b, b)) / (100 * 99)
    found = energy_distance(a, b)
    assert found.value == pytest.approx(1 - float(within / (2 * apart(a, b) / 100**2)), abs=1e-4)
    assert found.verdict == "violated"
    draws = [energy_distance(pinwheel(100, rng), pinwheel(100, rng), 99) for _ in range(20)]
    assert sum(d.verdict == "violated" for d in draws) <= 2


def test_the_figure_shows_the_points_that_each_denoiser_makes() -> None:
    networks = {"round": Gaussian(0.6, 0.6), "flat": Gaussian(1.0, 0.3)}
    (panel,) = drawn(networks)
    json.dumps(panel.figure, allow_nan=False)
    clouds = {d["name"]: torch.tensor([d["x"], d["y"]]).T for d in panel.figure["data"]}
    assert list(clouds) == ["to learn from", "round", "flat"]
    learned = load().train[1][: len(clouds["to learn from"]), :2]
    assert torch.allclose(clouds["to learn from"], learned, atol=1e-5)
    assert torch.allclose(clouds["flat"], points(networks["flat"], 256), atol=1e-5)


def test_it_is_said_whose_points_are_symmetric_and_whose_are_not() -> None:
    found = closing(DEMO, laws(load()), {})
    assert [f.level for f in found] == ["good", "good"]
    assert "energy distance 0.036 (floor 0.004)" in found[1].text
    networks = {"flat": Gaussian(1.0, 0.3), "round": Gaussian(0.6, 0.6)}
    ends = {
        entry: Outcome(score=0.5, stderr=0.1, parameters=0, errors={}, records=(), network=network)
        for entry, network in networks.items()
    }
    (said,) = [f.text for f in closing(DEMO, [], ends) if "turned by thirds" in f.text]
    assert "no more than chance for round" in said and "; more than chance for flat 0." in said
