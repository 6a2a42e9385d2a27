"""Exporting: the records of a run as CSV, Parquet or SQLite, one row a record."""

import csv
import math
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from eqtoolbox.record.record import FIELDS, Record
from eqtoolbox.report.log import Log

Format = Literal["csv", "parquet", "sqlite"]
FORMATS: tuple[Format, ...] = get_args(Format)
_NUMBERS = ("value", "stderr", "floor", "seconds")
_COUNTS = ("step", "matvecs", "segment")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets take a cell for that begins so
_ROWS = 50_000  # of one group of a Parquet file


def export(run: Log, path: str | os.PathLike[str], to: Format) -> Path:
    """Write all records by step, the last of each (step, name), all fields of `Record`.

    Facts are JSON text. CSV has nothing where a field is empty, NaN and inf as words, and an
    apostrophe before a text that a spreadsheet would run as a formula; SQLite has a table
    `records` with NULL for what is empty or NaN.

    Args:
        run: what was recorded.
        path: file to write, replaced in one piece.
        to: "csv", "parquet" (needs pyarrow) or "sqlite".

    Returns:
        The path of the file.

    Raises:
        ImportError: Parquet without pyarrow.
        ValueError: another format, or the file is one that the run itself consists of.
        OSError: the file cannot be written; says which and why.

    Example:
        >>> import pathlib, tempfile
        >>> home = pathlib.Path(tempfile.mkdtemp())
        >>> line = '{"step": 4, "name": "training/loss", "value": 2.5}'
        >>> _ = (home / "records.jsonl").write_text(line)
        >>> export(Log(home), home / "records.csv", "csv").read_text().split()[1]
        '4,training/loss,2.5,,,1,ok,,,,,,,0,'
    """
    writers: dict[str, Callable[[Iterator[list[Any]], Path], None]] = {
        "csv": _csv, "parquet": _parquet, "sqlite": _sqlite,
    }  # fmt: skip
    if to not in writers:
        raise ValueError(f"format must be one of {FORMATS}, got {to!r}")
    target = Path(path)
    if target.suffix in (".jsonl", ".json", ".bin"):
        raise ValueError(
            f"{target}: files of a run end in .jsonl, .json and .bin; name it {target.stem}.{to}"
        )
    draft = target.with_name(f"{target.name}.{os.getpid()}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.touch(exist_ok=False)
        writers[to](map(_row, run.rows()), draft)
        os.replace(draft, target)
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot write {target} ({error.strerror}); name another file"
        ) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return target


def _row(record: Record) -> list[Any]:
    values = [getattr(record, field) for field in FIELDS]
    place = FIELDS.index("facts")
    values[place] = record.facts.written() if record.facts else ""
    return values


def _csv(rows: Iterator[list[Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def _sqlite(rows: Iterator[list[Any]], path: Path) -> None:
    kinds = dict.fromkeys(_NUMBERS, "REAL") | dict.fromkeys(_COUNTS, "INTEGER")
    columns = ", ".join(f'"{field}" {kinds.get(field, "TEXT")}' for field in FIELDS)
    with closing(sqlite3.connect(path)) as base, base:
        base.execute(f"CREATE TABLE records ({columns})")
        places = ", ".join("?" * len(FIELDS))
        base.executemany(f"INSERT INTO records VALUES ({places})", rows)
        base.execute("CREATE INDEX by_name ON records (name, step)")


def _parquet(rows: Iterator[list[Any]], path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            'Parquet needs pyarrow: pip install "eqtoolbox[parquet]"; --to csv and --to sqlite '
            "need nothing"
        ) from error
    kinds = dict.fromkeys(_NUMBERS, pa.float64()) | dict.fromkeys(_COUNTS, pa.int64())
    schema = pa.schema([(field, kinds.get(field, pa.string())) for field in FIELDS])
    with pq.ParquetWriter(path, schema) as writer:
        while some := list(islice(rows, _ROWS)):
            columns = dict(zip(FIELDS, map(list, zip(*some, strict=True)), strict=True))
            writer.write_table(pa.table(columns, schema=schema))
