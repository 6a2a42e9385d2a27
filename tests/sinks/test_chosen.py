"""What a tracker gets: the dozen that matter, all, or what patterns ask for; the worst of many."""

import math
from typing import Any

import pytest

import eqtoolbox as eq
from eqtoolbox.record.chosen import LAYOUT, MAIN, chosen
from eqtoolbox.record.record import Record
from eqtoolbox.sinks import as_sink
from tests.conftest import mlp
from tests.sinks.test_trackers import train

ROWS = [
    Record(step=4, name="training/loss", value=0.5),
    Record(step=4, name="equivariance/relative_error/flip", value=0.1, floor=1e-7),
    Record(step=4, name="equivariance/relative_error/cyclic4", value=0.3, floor=2e-7),
    Record(step=4, name="equivariance/worst/cyclic4", value=0.9),
    Record(step=4, name="conservation/drift/scale", value=0.01),
    Record(step=4, name="conservation/drift/rescale", value=0.2),
    Record(step=4, name="conservation/share_decay/scale", value=0.99),
    Record(step=4, name="conservation/share_decay/rescale", value=-0.5),
    Record(step=4, name="conservation/share_finite_step/rescale", value=1.5),
    Record(step=4, name="noether/first_order/scale", value=1e-6),
    Record(step=4, name="noether/second_order/rescale", value=1e-3),
    Record(step=4, name="noether/rayleigh/rescale", value=70.0),
]
STEP = {row.name: row for row in ROWS}


def test_of_many_the_worst_is_drawn_with_its_floor_and_the_largest_cause() -> None:
    assert chosen(STEP, "main") == {
        "training/loss": 0.5,
        "worst/equivariance_error": 0.3,
        "worst/equivariance_floor": 2e-7,
        "worst/drift": 0.2,
        "worst/drift_cause/finite_step": 1.5,
        "worst/law_error": 1e-3,
    }


def test_patterns_choose_and_may_have_the_dozen_beside_them() -> None:
    assert set(chosen(STEP, ["noether/*"])) == {n for n in STEP if n.startswith("noether/")}
    assert set(chosen(STEP, "equivariance/worst")) == {"equivariance/worst/cyclic4"}
    both = chosen(STEP, ("main", "conservation/drift"))
    assert both["conservation/drift/scale"] == 0.01 and both["worst/drift"] == 0.2
    assert chosen(STEP, "all") == {name: row.value for name, row in STEP.items()}
    assert chosen(STEP, ["main", "all"]) == chosen(STEP, "main") | chosen(STEP, "all")


def test_the_default_is_about_a_dozen_and_every_chart_is_of_it() -> None:
    names = [scalar.name for scalar in MAIN]
    assert 10 <= len(names) <= 14 and len(set(names)) == len(names)
    assert {name for chart in LAYOUT.values() for name in chart} <= set(names)


def got(**how: Any) -> set[str]:
    names: set[str] = set()
    train(lambda numbers, step: names.update(numbers), **how)
    return {name.removeprefix("eqtoolbox/") for name in names}


def test_attach_chooses_for_its_trackers_and_a_sink_for_itself() -> None:
    usual, every = got(), got(select="all")
    assert {"training/loss", "curvature/sharpness", "vital/gradient_norm"} <= usual < every
    assert len(usual) <= len(MAIN) < len(every)
    assert got(select=["curvature/*"]) == {n for n in every if n.startswith("curvature/")}
    names: set[str] = set()
    own = as_sink(lambda numbers, step: names.update(numbers), select="training")
    train(own, select="all")
    assert names == {"eqtoolbox/training/loss", "eqtoolbox/training/learning_rate",
                     "eqtoolbox/training/applied"}  # fmt: skip


def test_a_number_that_is_none_is_not_the_worst() -> None:
    sink_got: list[dict[str, float]] = []
    sink = as_sink(lambda numbers, step: sink_got.append(numbers))
    name = "equivariance/relative_error"
    sink.write(Record(step=0, name=f"{name}/flip", value=0.1))
    sink.write(Record(step=0, name=f"{name}/turn", value=math.nan, status="non_finite"))
    sink.write(Record(step=0, name=f"{name}/shift", value=math.inf, status="non_finite"))
    sink.flush()
    assert sink_got == [{"eqtoolbox/worst/equivariance_error": 0.1}]


@pytest.mark.parametrize("wrong", [[], "", 3, [3]])
def test_what_chooses_nothing_is_refused(wrong: Any) -> None:
    import torch

    model = mlp(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises((TypeError, ValueError), match="select"):
        eq.attach(model, optimizer, select=wrong)
