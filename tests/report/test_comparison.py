"""Runs side by side: a difference below the errors is none, and what only one has is told."""

from pathlib import Path

import pytest

from eqtoolbox.record.record import Record
from eqtoolbox.report import Run
from eqtoolbox.report.comparison import comparison_data, comparison_text
from tests.report.runs import missing, series, write_run

NAME = "curvature/sharpness"


def pair(home: Path, a: list[Record], b: list[Record]) -> list[Run]:
    return [Run(write_run(home / "a", a)), Run(write_run(home / "b", b))]


@pytest.mark.parametrize(
    ("a", "b", "fields", "differs"),
    [
        (1.0, 1.2, {"stderr": 0.1}, False),  # 0.2 < 3 sqrt(2) 0.1
        (1.0, 1.5, {"stderr": 0.1}, True),
        (1e-7, 3e-7, {"floor": 1e-7}, False),  # rounding beside rounding
        (1e-7, 1e-3, {"floor": 1e-7}, True),
        (1.0, 1.001, {}, True),  # nothing is known of its error
        (1.0, 1.0, {}, False),
    ],
)
def test_a_difference_counts_from_three_errors_on(
    tmp_path: Path, a: float, b: float, fields: dict[str, float], differs: bool
) -> None:
    runs = pair(tmp_path, series(NAME, [a], **fields), series(NAME, [b], **fields))
    row = comparison_data(runs)["values"][NAME]
    assert row["differs"] is differs
    assert row["differences"] == [0.0, b - a]


def test_scatter_of_the_last_five_counts_as_an_error(tmp_path: Path) -> None:
    noisy = [1.0, 2.0, 1.5, 0.5, 1.8]
    runs = pair(tmp_path, series(NAME, noisy), series(NAME, [v + 0.3 for v in noisy]))
    assert not comparison_data(runs)["values"][NAME]["differs"]
    runs = pair(tmp_path / "far", series(NAME, noisy), series(NAME, [v + 9 for v in noisy]))
    assert comparison_data(runs)["values"][NAME]["differs"]


def test_names_and_findings_of_one_run_alone_are_told(tmp_path: Path) -> None:
    bad = series("noether/first_order/rescale", [0.5] * 5, floor=1e-7, verdict="violated")
    runs = pair(tmp_path, series(NAME, [1.0]), series(NAME, [1.0]) + bad)
    data = comparison_data(runs)
    assert data["values"]["noether/first_order/rescale"]["values"] == [None, 0.5]
    assert any(f["runs"] == [1] for f in data["findings"])
    text = comparison_text(data)
    assert "no number" in text and "1 name does not differ" in text and "\nb: " in text


def test_findings_are_the_same_whatever_their_numbers(tmp_path: Path) -> None:
    losses = [[3.0 - 0.1 * i for i in range(20)], [5.0 - 0.1 * i for i in range(20)]]
    runs = pair(tmp_path, *(series("training/loss", loss) for loss in losses))
    assert "learned" in runs[0].findings()[-1].text
    assert runs[0].findings()[-1].text != runs[1].findings()[-1].text
    assert all(f["runs"] == [0, 1] for f in comparison_data(runs)["findings"])
    assert "findings are the same" in comparison_text(comparison_data(runs))


def test_three_runs_are_compared_with_the_first(tmp_path: Path) -> None:
    homes = [tmp_path / x / "run" for x in "abc"]  # alike by name: told by their paths
    runs = [
        Run(write_run(home, series(NAME, [v] * (i + 1))))
        for i, (home, v) in enumerate(zip(homes, (2.0, 2.0, 3.0), strict=True))
    ]
    data = comparison_data(runs)
    assert data["values"][NAME]["within"] == [True, True, False]
    text = comparison_text(data)
    assert "none, +50 %" in text and "end at different steps" in text
    assert len({run["name"] for run in data["runs"]}) == 3


def test_runs_without_numbers_compare(tmp_path: Path) -> None:
    runs = pair(tmp_path, [], missing(NAME, [0, 10], "failed"))
    data = comparison_data(runs)
    assert data["values"][NAME]["values"] == [None, None]
    assert not data["values"][NAME]["differs"]
    assert comparison_text(data, every=True)


def test_a_name_that_no_run_has_is_refused(tmp_path: Path) -> None:
    runs = pair(tmp_path, series(NAME, [1.0]), [])
    with pytest.raises(KeyError, match="did you mean 'curvature/sharpness'"):
        comparison_data(runs, only=["curvature/sharpnes"])
    assert list(comparison_data(runs, only=["curvature"])["values"]) == [NAME]
