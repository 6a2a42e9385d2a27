"""A run that is read on is the run that is read at once."""

import json
from pathlib import Path

import pytest

from eqtoolbox.report import Run
from eqtoolbox.report import following as module
from eqtoolbox.report.live.growing import Growing
from tests.report.runs import EVENTS, TAIL, rich_records, series, write_run


@pytest.mark.parametrize("block", [1000, 1 << 18])
def test_read_in_pieces_a_run_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    whole = write_run(tmp_path / "whole", rich_records(), events=EVENTS, segments=2)
    content = {n: (whole / n).read_bytes() for n in ("records.jsonl", "events.jsonl")}
    home = write_run(tmp_path / "run", [], finished=None)
    run = Growing(home)
    for i in range(7):  # cut anywhere, in the middle of lines
        for name, text in content.items():
            with (home / name).open("ab") as file:
                file.write(text[i * len(text) // 7 : (i + 1) * len(text) // 7])
        assert run.more() and not run.more()
    assert not run.torn and not run.info["finished"]
    (home / "run.json").write_bytes((whole / "run.json").read_bytes())
    assert run.more()
    expected = Run(whole)
    assert run.info == expected.info and run.events == expected.events
    assert run.names() == expected.names()
    rows = [[r.to_json() for r in found.records()] for found in (run, expected)]
    assert rows[0] == rows[1]  # NaN is a text here, which is equal to itself
    assert run.findings() == expected.findings()


def test_a_torn_last_line_is_none_yet_and_a_foreign_one_is_told_once(tmp_path: Path) -> None:
    home = write_run(tmp_path, series("training/loss", [1.0]), tail=TAIL)
    run = Growing(home)
    assert run.last_step == 0 and run.torn == 0 and not run.events
    with (home / "records.jsonl").open("a") as file:
        file.write("\n[1]\n")
    assert run.more() and run.torn == 2
    told = [event["message"] for event in run.events]
    assert "line 2" in told[0] and "line 3" in told[1] and len(told) == 2
    (home / "events.jsonl").unlink()
    assert run.more() and run.torn == 2 and len(run.events) == 2


def test_a_run_in_the_place_of_another_is_read_anew(tmp_path: Path) -> None:
    run = Growing(write_run(tmp_path, series("training/loss", [1.0, 2.0])))
    (tmp_path / "records.jsonl").unlink()
    write_run(tmp_path, series("training/loss", [7.0, 8.0, 9.0]), started=9.0)  # maybe of one inode
    assert run.more() and run.series("training/loss")[1].tolist() == [7.0, 8.0, 9.0]
    text = json.dumps(series("a/b", [5.0])[0].to_json())
    (tmp_path / "records.jsonl").write_text(text)  # shorter, and the end of its line to come
    assert run.more() and run.names() == ["a/b"]
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write("\n[1]\n")
    assert run.more() and len(run.records()) == 1
    assert [e["message"] for e in run.events] == ["records.jsonl line 2: no whole JSON object"]


def test_only_what_was_appended_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = write_run(tmp_path, series("training/loss", [1.0] * 100))
    run = Growing(home)
    seen: list[bytes] = []
    parsed = module.parsed
    monkeypatch.setattr(module, "parsed", lambda text: seen.append(text) or parsed(text))
    with (home / "records.jsonl").open("a") as file:
        file.write(json.dumps(series("a/b", [5.0])[0].to_json()) + "\n")
    assert run.more() and len(run.records()) == 101
    assert len([text for text in seen if text]) == 1
