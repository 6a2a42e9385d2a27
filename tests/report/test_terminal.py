"""The summary: the same truths as text and as strict JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eqtoolbox.report import Run, summary_data, summary_text
from eqtoolbox.report.trace import drift
from tests.report.runs import STALE, UNCERTAIN, missing, series

MakeRun = Callable[..., Run]


def lines_of(run: Run) -> dict[str, list[str]]:
    """Cells of the table by name."""
    rows = [line.split() for line in summary_text(run).splitlines()]
    return {row[0]: row[1:] for row in rows if row and row[0] in run}


def test_the_data_is_strict_json(rich_run: Path) -> None:
    text = json.dumps(summary_data(Run(rich_run)), allow_nan=False)
    assert json.loads(text) == summary_data(Run(rich_run))


def test_infinite_values_are_null(make_run: MakeRun) -> None:
    data = summary_data(make_run(series("training/loss", [float("nan"), float("inf")])))
    assert data["values"]["training/loss"]["last"] is None
    json.dumps(data, allow_nan=False)


def test_text_and_data_tell_the_same(rich_run: Path) -> None:
    run = Run(rich_run)
    text, data = " ".join(summary_text(run).split()), summary_data(run)
    assert [f["text"] for f in data["findings"]] == [f.text for f in run.findings()]
    assert all(f["text"] in text for f in data["findings"])
    assert set(data["values"]) == set(run.names())


def test_every_name_has_an_aligned_line(rich_run: Path) -> None:
    run = Run(rich_run)
    lines = summary_text(run).splitlines()
    head = next(line for line in lines if line.startswith("name "))
    table = lines[lines.index(head) + 1 :]
    assert [line.split()[0] for line in table] == run.names()
    floor_ends = head.index("floor") + len("floor")
    assert all(len(line) <= floor_ends or line[floor_ends] == " " for line in table)


def test_findings_keep_to_the_width(rich_run: Path) -> None:
    text = summary_text(Run(rich_run)).split("\n\n")[1]
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith("WARNING  ")


def test_the_state_is_the_verdict_or_what_went_wrong(make_run: MakeRun) -> None:
    run = make_run(
        series("equivariance/relative_error/flip", [1e-8], floor=1e-7, verdict="holds"),
        series("curvature/sharpness", [2.0]),
        missing("curvature/sharpness", [10], "skipped_budget"),
        missing("curvature/stability", [0], "not_applicable"),
        series("training/loss", [1.0]),
    )
    cells = lines_of(run)
    assert cells["equivariance/relative_error/flip"] == ["1e-8", "1e-8", "1e-7", "holds"]
    assert cells["curvature/sharpness"] == ["2", "2", "skipped", "budget"]
    assert cells["curvature/stability"] == ["not", "applicable"]
    assert cells["training/loss"][-1] == "ok"


def test_uncertified_values_are_in_no_table(rich_run: Path) -> None:
    text = summary_text(Run(rich_run))
    assert "987" not in text
    values = summary_data(Run(rich_run))["values"].values()
    assert not {UNCERTAIN, STALE} & {row[key] for row in values for key in ("last", "median")}


@pytest.mark.parametrize(("slope", "arrow"), [(1.0, "↗"), (-1.0, "↘"), (0.0, "→")])
def test_the_arrow_follows_the_trend(make_run: MakeRun, slope: float, arrow: str) -> None:
    values = [5 + slope * i + 0.1 * (-1) ** i for i in range(20)]
    assert arrow in lines_of(make_run(series("training/loss", values)))["training/loss"]


def test_three_values_have_no_trend(make_run: MakeRun) -> None:
    data = summary_data(make_run(series("training/loss", [3.0, 2.0, 1.0])))
    assert data["values"]["training/loss"]["trend"] is None


def test_noise_has_a_trend_as_rarely_as_the_test_promises() -> None:
    rng = np.random.default_rng(0)
    trends = [drift(rng.standard_normal(50).tolist()) != 0 for _ in range(400)]
    assert sum(trends) <= 36  # 4.6 % expected at |z| >= 2; mean 18, this is over four sigma


def test_an_empty_run_has_a_summary(make_run: MakeRun) -> None:
    assert "no finding" in summary_text(make_run())
