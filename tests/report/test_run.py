"""A run read back: the last word of every step, whatever a kill left, clear errors."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eqtoolbox.record.record import Record
from eqtoolbox.report import Run
from tests.report.runs import STALE, UNCERTAIN, missing, rich_records, series, write_run

MakeRun = Callable[..., Run]


def test_series_are_by_increasing_step_in_float64(make_run: MakeRun) -> None:
    rows = series("training/loss", [3.0, 2.0, 1.0])
    steps, values = make_run(reversed(rows)).series("training/loss")
    assert steps.tolist() == [0, 10, 20]
    assert values.tolist() == [3.0, 2.0, 1.0]
    assert values.dtype == np.float64


def test_a_repeated_step_keeps_its_last_record(make_run: MakeRun) -> None:
    first = series("training/loss", [3.0, 2.0])
    again = [Record(step=10, name="training/loss", value=1.5, segment=1)]
    run = make_run(first, again)
    assert run.series("training/loss")[1].tolist() == [3.0, 1.5]
    assert [r.segment for r in run.records("training/loss")] == [0, 1]


def test_no_value_of_a_killed_segment_survives_the_resumed_one(rich_run: Path) -> None:
    run = Run(rich_run)
    assert STALE in [r.value for r in rich_records()]
    assert not any(r.value == STALE for r in run.records())


def test_nan_rows_appear_only_on_request(make_run: MakeRun) -> None:
    rows = series("curvature/sharpness", [1.0, 2.0])
    rows += missing("curvature/sharpness", [20], "skipped_budget")
    run = make_run(rows)
    assert run.series("curvature/sharpness")[0].tolist() == [0, 10]
    steps, values = run.series("curvature/sharpness", include_missing=True)
    assert steps.tolist() == [0, 10, 20]
    assert np.isnan(values[2])


def test_a_value_that_did_not_converge_is_missing(make_run: MakeRun) -> None:
    bad = Record(step=5, name="curvature/sharpness", value=9.0, status="not_converged")
    run = make_run(series("curvature/sharpness", [1.0]), [bad])
    assert run.series("curvature/sharpness")[1].tolist() == [1.0]
    assert run.column("curvature/sharpness", "status", include_missing=True).tolist() == [
        "ok",
        "not_converged",
    ]


def test_non_finite_values_survive_the_round_trip(make_run: MakeRun) -> None:
    run = make_run(series("training/loss", [1.0, float("inf"), float("nan"), -float("inf")]))
    _, values = run.series("training/loss", include_missing=True)
    assert np.array_equal(values, [1.0, np.inf, np.nan, -np.inf], equal_nan=True)


def test_columns_are_aligned_with_the_series(make_run: MakeRun) -> None:
    rows = series("equivariance/relative_error/flip", [0.1, 0.2], floor=1e-7, verdict="violated")
    run = make_run(rows, missing("equivariance/relative_error/flip", [5], "failed"))
    name = "equivariance/relative_error/flip"
    assert run.column(name, "floor").tolist() == [1e-7, 1e-7]
    assert run.column(name, "verdict").tolist() == ["violated", "violated"]
    assert np.isnan(run.stderr(name)).all()
    assert len(run.stderr(name)) == len(run.series(name)[0])


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_a_torn_last_line_costs_only_itself(tmp_path: Path, cut: int) -> None:
    line = json.dumps(Record(step=20, name="training/loss", value=0.5).to_json())
    home = write_run(tmp_path, series("training/loss", [2.0, 1.0]), tail=line[:-cut])
    run = Run(home)
    assert run.series("training/loss")[1].tolist() == [2.0, 1.0]
    assert run.torn == 1


def test_a_whole_last_line_without_its_newline_counts(tmp_path: Path) -> None:
    line = json.dumps(Record(step=20, name="training/loss", value=0.5).to_json())
    run = Run(write_run(tmp_path, series("training/loss", [2.0, 1.0]), tail=line))
    assert run.series("training/loss")[1].tolist() == [2.0, 1.0, 0.5]
    assert run.torn == 0


def test_torn_lines_in_the_middle_are_skipped_and_counted(tmp_path: Path) -> None:
    home = write_run(tmp_path, series("training/loss", [2.0]))
    good = json.dumps(Record(step=10, name="training/loss", value=1.0).to_json()).encode()
    damage = [b'{"step": 5, "name": "trai', b"\xff\xfe\x00", b"[1]", b'{"step": "x"}', b'"text"']
    with (home / "records.jsonl").open("ab") as file:
        file.write(b"\n".join([*damage, good, b""]))
    run = Run(home)
    assert run.series("training/loss")[0].tolist() == [0, 10]
    assert run.torn == len(damage)


def test_a_live_run_reads_and_a_new_reading_sees_more(tmp_path: Path) -> None:
    home = write_run(tmp_path, [], finished=None)
    lines = [json.dumps(r.to_json()) + "\n" for r in series("training/loss", [2.0, 1.0, 0.5])]
    with (home / "records.jsonl").open("a") as file:
        for count, line in enumerate(lines, start=1):
            file.write(line)
            file.flush()
            assert len(Run(home).records()) == count


def test_a_directory_with_records_alone_is_a_run(tmp_path: Path) -> None:
    write_run(tmp_path, series("training/loss", [2.0]))
    (tmp_path / "run.json").unlink()
    (tmp_path / "events.jsonl").unlink()
    run = Run(tmp_path)
    assert run.info == {}
    assert run.events == []
    assert isinstance(run.findings(), list)


def test_an_unreadable_run_json_is_no_obstacle(tmp_path: Path) -> None:
    write_run(tmp_path, series("training/loss", [2.0]))
    (tmp_path / "run.json").write_text('{"format": 1,')
    run = Run(tmp_path)
    assert run.info == {}
    assert run.torn == 1


def test_an_empty_run_has_nothing_and_says_so(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path, []))
    assert run.names() == []
    assert run.last_step == 0
    assert run.findings() == []
    with pytest.raises(KeyError, match="there are none"):
        run.series("training/loss")


def test_eigenvalue_ten_comes_after_nine(make_run: MakeRun) -> None:
    run = make_run(*[series(f"curvature/eigenvalue/{k}", [1.0]) for k in (10, 9, 1, 2)])
    assert run.targets("curvature/eigenvalue") == ["1", "2", "9", "10"]


def test_an_unknown_name_is_answered_with_the_nearest(rich_run: Path) -> None:
    run = Run(rich_run)
    with pytest.raises(KeyError, match=r"did you mean 'curvature/sharpness'"):
        run.series("curvature/sharpnes")
    with pytest.raises(KeyError, match=r"records have no field 'flor'.*'floor'"):
        run.column("training/loss", "flor")


def test_a_missing_directory_is_answered_with_the_nearest(tmp_path: Path) -> None:
    write_run(tmp_path / "digits-sgd", [])
    for given in (5, None, b"x", "", " ", ["x"]):
        with pytest.raises(TypeError, match=r"path must be the run directory, got .*run_dir="):
            Run(given)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="did you mean 'digits-sgd'"):
        Run(tmp_path / "digits-sdg")
    with pytest.raises(FileNotFoundError, match="no run directory"):
        Run(tmp_path / "no" / "such" / "place")


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run directory: expected run\.json"):
        Run(tmp_path)
    write_run(tmp_path / "first", series("training/loss", [1.0]))
    with pytest.raises(ValueError, match="runs are in first"):
        Run(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"got the file .*records\.jsonl"):
        Run(tmp_path / "first" / "records.jsonl")


def test_the_wide_frame_has_one_row_a_step(make_run: MakeRun) -> None:
    pytest.importorskip("pandas")
    losses = series("training/loss", [3.0, 2.0, 1.0])
    top = [Record(step=10, name="curvature/sharpness", value=7.0)]
    lost = missing("noether/second_order", [0], "failed")
    frame = make_run(losses, top, lost).frame()
    assert list(frame.index) == [0, 10, 20]
    assert frame.loc[10, "curvature/sharpness"] == 7.0
    assert frame["curvature/sharpness"].isna().tolist() == [True, False, True]
    assert frame["noether/second_order"].isna().all()


def test_the_long_frame_has_every_record(rich_run: Path) -> None:
    pytest.importorskip("pandas")
    run = Run(rich_run)
    frame = run.frame(long=True)
    assert len(frame) == len(run.records())
    assert {"step", "name", "value", "stderr", "floor", "status", "verdict"} <= set(frame.columns)
    assert UNCERTAIN in frame["value"].values


def test_a_frame_without_pandas_says_what_to_install(
    rich_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        Run(rich_run).frame()


def test_a_notebook_shows_the_findings_escaped(make_run: MakeRun) -> None:
    events = [{"step": 1, "kind": "error", "probe": "x", "message": "<script>alert(1)</script>"}]
    shown = make_run(series("training/loss", [1.0]), events=events)._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script>" not in shown


def test_importing_the_report_loads_no_plotting() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import eqtoolbox.report as r;"
        "r.Run, r.Finding, r.summary_text;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "bad = new & {'plotly', 'jinja2', 'pandas', 'scipy'}; assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
