"""A symmetry is lost that a model had while it knew its data; an untrained network had none."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from eqtoolbox.probes.growth import Baselines, Seen, explained, growth
from eqtoolbox.record.record import Verdict
from eqtoolbox.symmetry.result import EquivarianceResult

RESULT = EquivarianceResult(
    relative_error=0.05, stderr=0.0, worst=0.05, worst_element=1, orbit_variance=0.1,
    orbit_variance_floor=1e-9, orbit_variance_stderr=0.0, floor=1e-7, verdict="violated",
    samples=3, enumerated=True, percent_of_loss=10.0, consistency=0.95,
)  # fmt: skip


def seen(error: float, knows: float | None, verdict: Verdict = "violated", **other: Any) -> Seen:
    result = replace(RESULT, relative_error=error, verdict=verdict, **other)
    return Seen(result=result, samples=64, explained=knows, classifies=True)


def last(*steps: Seen) -> tuple[float, str]:
    memory = Baselines()
    rows = [growth(step, "turns", memory) for step in steps]
    return rows[-1].value, rows[-1].note


def test_an_untrained_network_is_no_baseline_however_small_its_error() -> None:
    value, note = last(seen(0.05, 0.0), seen(0.9, 0.5))
    assert value == 1.0 and not note  # that of the first step at which it knew its data
    value, note = last(seen(0.05, 0.0), seen(0.9, 0.05))
    assert value == 18.0 and "no baseline" in note


def test_a_network_that_knew_its_data_and_had_the_symmetry_loses_it() -> None:
    value, note = last(seen(0.05, 0.9), seen(0.9, 0.9))
    assert value == 18.0 and note.startswith("alarm: 18.0 times its smallest")


def test_what_holds_to_rounding_is_a_baseline_untrained() -> None:
    assert last(seen(1e-8, 0.0, "holds"), seen(0.1, 0.0))[1].startswith("alarm")


def test_a_growth_that_costs_nothing_is_no_alarm() -> None:
    cheap = seen(0.9, 0.9, percent_of_loss=0.2)
    assert not last(seen(0.05, 0.9), cheap)[1]


def test_classes_that_no_longer_stay_are_an_alarm_at_a_smaller_growth() -> None:
    value, note = last(seen(0.3, 0.9), seen(0.6, 0.9, consistency=0.7))
    assert value == 2.0 and "70% of moved samples keep their class, 95% did" in note
    assert not last(seen(0.3, 0.9), seen(0.6, 0.9, consistency=0.9))[1]
    assert not last(seen(0.3, 0.9, consistency=0.5), seen(0.6, 0.9, consistency=0.2))[1]


def test_explained_is_the_share_that_looking_saves() -> None:
    y = torch.tensor([[1.0], [2.0], [6.0]])
    loss = lambda f: (f - y).square().mean()
    assert explained(y, loss) == 1.0
    assert explained(torch.full_like(y, 3.0), loss) == 0.0
    assert explained(y[:1], loss) is None and explained(y.long(), loss) is None
    assert explained(y, None) is None
    assert explained(y, nn.CrossEntropyLoss()) is None  # it takes a target, too


@pytest.mark.parametrize("error", [float("nan")])
def test_no_error_has_no_growth(error: float) -> None:
    (row,) = [growth(seen(error, 0.9), "turns", Baselines())]
    assert row.status == "not_applicable"
