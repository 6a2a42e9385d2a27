"""Exported records are those of the run, whatever format and whatever stands in them."""

import csv
import math
import sqlite3
import sys
from pathlib import Path

import pytest

from eqtoolbox.record.record import FIELDS, Record
from eqtoolbox.report import Run
from eqtoolbox.report.exporting import export
from tests.report.runs import write_run

ROWS = [
    Record(step=0, name="training/loss", value=2.5, unit="=1+1"),
    Record(step=0, name="curvature/sharpness", value=math.nan, status="failed", note='a "b",\nc'),
    Record(step=5, name="training/loss", value=math.inf, stderr=0.1, matvecs=3),
    Record(step=7, name="discrete/dead", value=1.0, facts={"which": "−x"}, verdict="holds"),
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(write_run(tmp_path / "run", ROWS, format=2))


def test_csv_has_every_field_and_no_formula(run: Run, tmp_path: Path) -> None:
    with export(run, tmp_path / "x" / "r.csv", "csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(FIELDS)
    by_name = {(r["name"], r["step"]): r for r in rows}
    assert len(rows) == 4 and float(by_name["training/loss", "5"]["value"]) == math.inf
    assert by_name["training/loss", "0"]["unit"] == "'=1+1"
    bad = by_name["curvature/sharpness", "0"]
    assert bad["value"] == "NaN" and bad["note"] == 'a "b",\nc' and bad["stderr"] == ""
    assert "which" in by_name["discrete/dead", "7"]["facts"]


def test_sqlite_answers_questions(run: Run, tmp_path: Path) -> None:
    with sqlite3.connect(export(run, tmp_path / "r.db", "sqlite")) as base:
        found = base.execute("SELECT step, value FROM records WHERE name = 'training/loss'")
        assert found.fetchall() == [(0, 2.5), (5, math.inf)]
        none = base.execute("SELECT count(*) FROM records WHERE value IS NULL").fetchone()
        assert none == (1,)
    base.close()


def test_parquet_is_the_long_frame(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(export(run, tmp_path / "r.parquet", "parquet"))
    assert table.column_names == list(FIELDS)
    assert [r["matvecs"] for r in table.to_pylist()] == [None, None, 3, None]


def test_parquet_without_pyarrow_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "eqtoolbox\[parquet\]"'):
        export(run, tmp_path / "r.parquet", "parquet")
    assert not list(tmp_path.glob("r.parquet*"))


def test_files_of_the_run_are_never_written_over(run: Run) -> None:
    before = (run.path / "records.jsonl").read_bytes()
    for name in ("records.jsonl", "run.json", "arrays.bin"):
        with pytest.raises(ValueError, match="files of a run end in"):
            export(run, run.path / name, "csv")
    assert (run.path / "records.jsonl").read_bytes() == before


def test_an_older_export_is_replaced_and_a_link_is_not_followed(run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    target = run.path / "records.csv"
    target.symlink_to(outside)
    for _ in range(2):
        assert export(run, target, "csv").read_text().startswith("step,name")
    assert outside.read_text() == "mine" and not target.is_symlink()


def test_what_cannot_be_written_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*name another file"):
        export(run, tmp_path / "file" / "r.csv", "csv")
    with pytest.raises(ValueError, match="format must be one of"):
        export(run, tmp_path / "r.xls", "xls")  # type: ignore[arg-type]
