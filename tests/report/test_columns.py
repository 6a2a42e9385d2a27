"""What is found in the columns of a long run is what its records, one by one, would give."""

import math
from pathlib import Path
from random import Random

import numpy as np
import pytest

from eqtoolbox.report import Run
from eqtoolbox.report.marks import BLOCK, WINDOW, spikes
from eqtoolbox.report.table import Rows
from eqtoolbox.report.topics.charges import ROUNDING, drifts, moved
from eqtoolbox.report.trace import SHORT, onset, trace
from tests.report.runs import missing, series, write_run

DRIFT = "conservation/drift/scale"


def plainly(flags: list[bool], window: int) -> int | None:
    """The onset as its docstring has it, window by window."""
    held = [np.mean(flags[max(0, i - window + 1) : i + 1]) >= 0.5 for i in range(len(flags))]
    if not held or not held[-1]:
        return None
    begin = max((i + 1 for i, h in enumerate(held) if not h), default=0)
    while begin > 0 and flags[begin - 1]:
        begin -= 1
    return begin


@pytest.mark.parametrize("window", [1, 2, 5, 6])
def test_the_onset_is_that_of_its_definition(window: int) -> None:
    draw = Random(0)
    for _ in range(500):
        flags = [draw.random() < draw.choice((0.1, 0.5, 0.9)) for _ in range(draw.randrange(20))]
        assert onset(flags, window) == plainly(flags, window), flags


@pytest.mark.parametrize("count", [SHORT // 2, SHORT * 3])
def test_drifts_get_the_floor_of_rounding_where_they_have_none(tmp_path: Path, count: int) -> None:
    rows = series(DRIFT, [0.0, 0.0, *[0.1] * (count - 2)])
    rows[5] = series(DRIFT, [0.1] * 6, floor=0.25)[5]
    found = drifts(Run(write_run(tmp_path, rows, dtype="float32")))["scale"]
    assert isinstance(found.records, Rows) == (count > SHORT)
    expected = [ROUNDING["float32"] * math.sqrt(10 * i + 1) for i in range(count)]
    expected[5] = 0.25
    assert found.numbers("floor").tolist() == pytest.approx(expected, rel=1e-12)
    assert [r.floor for r in found.records] == pytest.approx(expected, rel=1e-12)
    assert found.last.floor == pytest.approx(expected[-1])
    assert found.records[5].floor == 0.25 == found.records[3:][2].floor
    assert moved(found).records[0].step == 20


def test_some_of_a_curve_are_the_same_in_tuples_and_in_columns(tmp_path: Path) -> None:
    for count in (10, SHORT * 2):
        rows = series("a/b", range(count)) + missing("a/b", [count * 10], "failed")
        curve = trace(Run(write_run(tmp_path / str(count), rows)), "a/b")
        assert curve is not None
        even = curve.where(np.arange(count) % 2 == 0)
        assert even is not None and [r.value for r in even.records] == list(range(0, count, 2))
        assert curve.where(np.zeros(count, bool)) is None


def test_a_spike_is_found_on_both_sides_of_a_block(tmp_path: Path) -> None:
    values = np.exp(0.01 * np.random.default_rng(0).standard_normal(BLOCK + 200))
    at = [BLOCK - 30, BLOCK + WINDOW - 1, BLOCK + WINDOW + 40]
    values[at] = 9.0
    run = Run(write_run(tmp_path, series("training/loss", values.tolist(), every=1)))
    assert [spike["step"] for spike in spikes(run)] == at
