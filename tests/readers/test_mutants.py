"""Whatever lies in a run directory, reading it raises nothing but a clear refusal."""

import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from eqtoolbox.record.record import FIELDS
from eqtoolbox.report import Run, summary_data, summary_text
from eqtoolbox.report.comparison import comparison_data, comparison_text
from eqtoolbox.report.exporting import export
from eqtoolbox.report.following import line, newest
from eqtoolbox.report.page import content
from eqtoolbox.sinks.jsonl import RunDirectory
from tests.readers.mutants import mutant, sound
from tests.report.runs import series, write_run

COUNT = int(os.environ.get("EQTOOLBOX_MUTANTS", "250"))  # 5000 are run by hand
PARTS = 10
REFUSED = ("expected a plain file", "is no run directory")


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return sound()


def read(home: Path, page_too: bool) -> None:
    """All that can be asked of a run, and going on with it; the page takes most of the time."""
    run = Run(home)
    text = summary_text(run)
    assert not set(text) & set("\x1b\x07\x00\u202e")
    for name in run.names():
        run.series(name), run.records(name)
    for name in run.arrays():
        run.array(name)
    if page_too:
        panels = [panel for section in content(run)["sections"] for panel in section.panels]
        json.dumps([panel.figure for panel in panels], allow_nan=False)
        json.dumps(summary_data(run), allow_nan=False)
        run._repr_html_().encode()
        beside(run)
    before = run.last_step if run.names() else -1
    again = RunDirectory(home, resume=True)
    again.close()
    assert again.next_step == before + 1
    assert Run(home).last_step == run.last_step


def beside(run: Run) -> None:
    """What is made of runs for other eyes: comparisons, files, figures, the newest lines."""
    other = Run(write_run(run.path.parent / "other", series("training/loss", [1.0, 0.5])))
    compared = comparison_data([run, other])
    json.dumps(compared, allow_nan=False)
    assert not set(comparison_text(compared, every=True)) & set("\x1b\x07\x00\u202e")
    for kind in ("csv", "sqlite"):
        export(run, run.path.parent / f"records.{kind}", kind)  # type: ignore[arg-type]
    with sqlite3.connect(run.path.parent / "records.sqlite") as base:
        assert base.execute("SELECT count(*) FROM records").fetchone() == (len(run.rows()),)
    base.close()
    for name in run.names()[:2]:
        run.plot(name).to_json()
    for record in newest(run.path, 5)[0]:
        line(record)
        json.dumps(record.to_json(), allow_nan=False)


def survives(home: Path, page_too: bool = True) -> bool:
    """Whether it was read to the end; a refusal in words is no failure."""
    try:
        read(home, page_too)
    except (OSError, ValueError) as error:
        if not any(words in str(error) for words in REFUSED):
            raise
        return False
    return True


@pytest.mark.parametrize("part", range(PARTS))
def test_no_mutant_of_a_run_raises(part: int, tmp_path: Path, whole: dict[str, Any]) -> None:
    survived = 0
    seeds = range(part, COUNT, PARTS)
    for seed in seeds:
        home = tmp_path / str(seed)
        done = mutant(home, seed, whole)
        try:
            survived += survives(home, page_too=seed % 3 == 0)
        except Exception as error:
            pytest.fail(f"seed {seed} ({', '.join(done)}): {type(error).__name__}: {error}")
        shutil.rmtree(home)
    assert survived > len(seeds) // 2


def test_a_reader_that_trusts_its_rows_is_caught(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = {"unit": "1", "status": "ok", "note": "", "segment": 0}

    def trusting(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple((defaults | row).get(field) for field in FIELDS)

    monkeypatch.setattr("eqtoolbox.report.directory.checked", trusting)
    caught = 0
    for seed in range(40):
        mutant(tmp_path / str(seed), seed, whole)
        try:
            survives(tmp_path / str(seed))
        except Exception:
            caught += 1
    assert caught >= 3
