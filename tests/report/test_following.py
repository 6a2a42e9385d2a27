"""The newest records are read from the end, and those that come later as they come."""

import json
import threading
from pathlib import Path

import pytest

from eqtoolbox.record.record import Record
from eqtoolbox.report import following as module
from eqtoolbox.report.following import following, line, newest
from tests.report.runs import series, write_run


@pytest.mark.parametrize("block", [1, 7, 100, 1 << 18])
@pytest.mark.parametrize("count", [1, 3, 50])
def test_the_last_records_come_in_the_order_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, count: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    rows = series("training/loss", [float(i) for i in range(20)])
    home = write_run(tmp_path, rows, tail='{"step": 20, "na')
    found, end = newest(home, count)
    assert [r.value for r in found] == [float(i) for i in range(20)][-count:]
    assert (home / "records.jsonl").read_bytes()[end:] == b'{"step": 20, "na'


def test_only_what_is_asked_for_and_nothing_that_is_torn(tmp_path: Path) -> None:
    rows = series("training/loss", [1.0] * 4) + series("curvature/sharpness", [2.0])
    home = write_run(tmp_path, rows)
    with (home / "records.jsonl").open("ab") as file:
        file.write(b'\xff\n[1]\n{"step": -1}\n\n' + b"x" * 1000 + b"\n")
    assert [r.name for r in newest(home, 9, ["curvature"])[0]] == ["curvature/sharpness"]
    assert len(newest(home, 3, ["training"])[0]) == 3
    assert newest(home, 3, ["nothing"])[0] == []


def test_a_line_beyond_all_measure_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIMIT", 64)
    monkeypatch.setattr(module, "_BLOCK", 16)
    home = write_run(tmp_path, series("a/b", [1.0]))
    with (home / "records.jsonl").open("a") as file:
        file.write("y" * 500 + "\n" + json.dumps(series("a/c", [2.0])[0].to_json()) + "\n")
    monkeypatch.setattr(module, "LIMIT", 400)
    assert [r.name for r in newest(home, 5)[0]] == ["a/b", "a/c"]


def test_a_whole_last_line_without_its_end_counts_once(tmp_path: Path) -> None:
    last = json.dumps(series("training/loss", [9.0])[0].to_json())
    home = write_run(tmp_path, series("training/loss", [1.0]), tail=last)
    found, end = newest(home, 5)
    assert [r.value for r in found] == [1.0, 9.0]
    assert list(following(home, end)) == []  # the run has ended


def test_an_empty_run_has_none(tmp_path: Path) -> None:
    home = write_run(tmp_path, [])
    assert newest(home, 5) == ([], 0)
    (home / "records.jsonl").unlink()
    assert newest(home, 5) == ([], 0)
    with pytest.raises(FileNotFoundError, match="no run directory"):
        newest(tmp_path / "nowhere", 5)


def test_what_is_written_later_is_followed_to_the_end_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    home = write_run(tmp_path, series("training/loss", [1.0]), finished=None)
    _, end = newest(home, 5)

    def writes() -> None:
        text = json.dumps(series("training/loss", [2.0])[0].to_json()) + "\n"
        for part in (text[:9], text[9:], text.strip()):  # in pieces, the last without its end
            with (home / "records.jsonl").open("a") as file:
                file.write(part)
        (home / "run.json").write_text('{"finished": 5.0}')

    thread = threading.Timer(0.05, writes)
    thread.start()
    found = [r.value for r in following(home, end)]
    thread.join()
    assert found == [2.0, 2.0]


def test_a_line_tells_why_there_is_no_number() -> None:
    failed = Record(step=3, name="a/b", value=float("nan"), status="not_converged", note="slow")
    assert line(failed).split("  ")[-2:] == ["not converged", "slow"]
