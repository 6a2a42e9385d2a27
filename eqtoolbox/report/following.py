"""Following: the newest records of a run, and those that are still being written."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from eqtoolbox.record.chosen import asked
from eqtoolbox.record.files import LIMIT, Folder, parsed, read_object
from eqtoolbox.record.record import Record
from eqtoolbox.report.directory import require_run
from eqtoolbox.report.words import number

_BLOCK = 1 << 18  # bytes read at a time, from the end
PAUSE = 0.5  # seconds between looks at a file that grows


def newest(path: Path, count: int, only: Sequence[str] = ()) -> tuple[list[Record], int]:
    """The last records as they were written, and where in the file whatever follows begins.

    Only as much of the file is read as they take; lines that are no records are passed over.

    Args:
        path: the run directory.
        count: of records at most.
        only: names, beginnings or patterns, as in `summary_data`.

    Raises:
        OSError: no such run, or its records cannot be read.
        ValueError: the directory holds no run.
    """
    require_run(path)
    found: deque[Record] = deque()
    try:
        file = Folder(path).open("records.jsonl", "rb")
    except FileNotFoundError:
        return [], 0
    with file:
        begin = end = file.seek(0, 2)
        rest, open_ended = b"", True  # of the line whose beginning is not read yet
        while begin and len(found) < count:
            size = min(_BLOCK, begin)
            begin -= size
            file.seek(begin)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            if open_ended and lines:
                open_ended, last = False, lines[-1]
                if parsed(last) is None:  # it may still be being written
                    end -= len(lines.pop())
            if not begin:
                lines.insert(0, rest)
            rest = rest if len(rest) <= LIMIT else b"!"  # too long, and no record
            for text in reversed(lines):
                record = _record(text, only)
                if record is not None and len(found) < count:
                    found.appendleft(record)
        return list(found), 0 if open_ended and not found else end


def following(path: Path, start: int, only: Sequence[str] = ()) -> Iterator[Record]:
    """Records that are written behind a place of the file, as they come, until the run ends.

    Args:
        path: the run directory.
        start: as `newest` returns it.
        only: names, beginnings or patterns, as in `summary_data`.
    """
    folder, rest = Folder(path), b""
    while True:
        finished = bool((read_object(folder, "run.json") or {}).get("finished"))
        try:
            with folder.open("records.jsonl", "rb") as file:
                more = _read(file, start)
        except FileNotFoundError:
            more = b""
        start += len(more)
        *lines, rest = (rest + more).split(b"\n")
        rest = b"" if len(rest) > LIMIT else rest
        yield from (r for line in lines if (r := _record(line, only)))
        if more:
            continue
        if finished:
            last = _record(rest, only)  # whole though its line has no end
            yield from [last] if last else []
            return
        time.sleep(PAUSE)


def line(record: Record) -> str:
    """A record in a line: step, name, value with its error, verdict or status.

    Example:
        >>> line(Record(step=7, name="noether/bracket", value=1e-8, floor=2e-8, verdict="holds"))
        '      7  noether/bracket  1e-8  floor 2e-8  holds'
    """
    said = [f"{record.step:>7}", record.name]
    if record.status == "ok":
        error = "" if record.stderr is None else f" ± {number(record.stderr, 2)}"
        unit = "" if record.unit == "1" else f" {record.unit}"
        said.append(f"{number(record.value)}{error}{unit}")
        said += [] if record.floor is None else [f"floor {number(record.floor, 2)}"]
        said += [record.verdict] if record.verdict else []
    else:
        said += [record.status.replace("_", " "), *([record.note] if record.note else [])]
    return "  ".join(said)


def _read(file: BinaryIO, start: int) -> bytes:
    file.seek(start)
    return file.read(_BLOCK)


def _record(text: bytes, only: Sequence[str]) -> Record | None:
    """The record of a line; None for none, or for one that nobody asks for."""
    row = parsed(text)
    try:
        record = None if row is None else Record.from_json(row)
    except ValueError:
        return None
    return record if record is not None and asked(record.name, only) else None
