"""The neutrality matrix: no bit of a training changes, and what is measured is what trains."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.neutrality.features import FEATURES, plain
from tests.neutrality.table import Cell, by_place, by_surface, markdown, outcome
from tests.neutrality.watch import Watch

ALONE: dict[Any, Watch] = {}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("cell", [*by_surface(), *by_place()], ids=str)
def test_training_is_bit_identical(cell: Cell) -> None:
    same, watched = outcome(cell, ALONE)
    assert same
    assert watched.sink.records
    assert not [r for r in watched.sink.records if r.status == "failed"]
    if cell.place == "step":
        if cell.surface != "loss_fn":  # there the loop's own value is not seen
            assert watched.values("training/loss") == pytest.approx(watched.seen, rel=1e-6)
        assert watched.values("faithful/loss") == pytest.approx(watched.seen, rel=1e-5)
        cosines = watched.values("faithful/gradient")
        if cell.feature.gradient:
            assert len(cosines) == len(watched.seen)
            assert min(cosines) > 0.9999
    else:
        assert {r.name.split("/")[0] for r in watched.sink.records} & {*cell.probes}


def test_a_change_in_the_last_bit_is_seen() -> None:
    def disturbed(watch: Watch) -> None:
        batches = iter(range(10))

        def nudge(model: Any, _: Any) -> None:
            if next(batches) == 1:
                with torch.no_grad():
                    bias = model.head.bias
                    bias[0] = torch.nextafter(bias[0], torch.tensor(9.0))

        plain(watch, after=nudge)

    one, two = Watch(), Watch()
    FEATURES[0].run(one), disturbed(two)
    assert one.trail[0] == two.trail[0]
    assert one.trail[1] != two.trail[1]


def test_the_table_says_what_changed() -> None:
    def stray(watch: Watch) -> None:
        if watch.probes is not None:
            torch.rand(1)
        FEATURES[0].run(watch)
        watch.note(torch.rand(1) if watch.probes is not None else 0)

    cells = [
        Cell(FEATURES[0], probes=()),
        Cell(replace(FEATURES[0], name="x", run=stray), probes=()),
    ]
    lines = list(markdown("training", cells, lambda c: (c.feature.name, "decorator")))
    assert lines[2].split(" | ")[1].startswith("=")
    assert "**changed**" in lines[3]
