"""Following: the newest records of a run, and those that are still being written."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
                if len(found) == count:
                    break
                record = _record(text, only)
                if record is not None:
                    found.appendleft(record)
        return list(found), 0 if open_ended and not found else end


def following(path: Path, start: int, only: Sequence[str] = ()) -> Iterator[Record]:
    """Records that are written behind a place of the file, as they come, until the run ends.

    Args:
        path: the run directory.
        start: as `newest` returns it.
        only: names, beginnings or patterns, as in `summary_data`.
    """
    folder, file = Folder(path), Appended("records.jsonl", start)
    while True:
        finished, before = bool((read_object(folder, "run.json") or {}).get("finished")), file.start
        yield from (r for line in file.lines(folder) if (r := _record(line, only)))
        if file.start == before:
            if finished:
                return
            time.sleep(PAUSE)


class Appended:
    """What was added to a file of a directory since it was looked at last.

    Args:
        name: the file.
        start: where in it to begin.
    """

    def __init__(self, name: str, start: int = 0) -> None:
        self.name = name
        self.start = start  # bytes that were read
        self.number = 0  # of the last line with something in it, from 1
        self._rest = b""  # of a line whose end is not written yet

    def lines(self, folder: Folder) -> Iterator[bytes]:
        """Lines that are whole by now, in the order written; none where the file is missing.

        Raises:
            OSError: the file is no plain file, or not ours to read.
        """
        try:
            file = folder.open(self.name, "rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(self.start)
            while more := file.read(_BLOCK):
                self.start += len(more)
                *lines, rest = (self._rest + more).split(b"\n")
                self._rest = b"" if len(rest) > LIMIT else rest
                for text in lines:
                    self.number += bool(text)  # the end of a line that came before it is none
                    yield text
        if parsed(self._rest) is not None:  # whole though its line has no end yet
            text, self._rest = self._rest, b""
            self.number += 1
            yield text

    def rows(self, folder: Folder) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """The same as `files.rows` gives them: numbers and JSON objects."""
        for text in self.lines(folder):
            if text and not text.isspace():
                yield self.number, parsed(text)


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


def _record(text: bytes, only: Sequence[str]) -> Record | None:
    """The record of a line; None for none, or for one that nobody asks for."""
    row = parsed(text)
    try:
        record = None if row is None else Record.from_json(row)
    except ValueError:
        return None
    return record if record is not None and asked(record.name, only) else None
