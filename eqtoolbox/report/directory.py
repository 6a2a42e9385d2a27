"""The files of a run directory: checked, and read as far as they are whole."""

import difflib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from eqtoolbox.record.files import Folder, read_object, rows
from eqtoolbox.record.record import LAST, checked
from eqtoolbox.report.described import sound
from eqtoolbox.report.old_notes import understood

WHOLE = "no whole JSON object"  # of what a kill tore
TOLD = 20  # oddities of a run that are told one by one
_KINDS = ("info", "warning", "error")


class Oddities:
    """What could not be read of a run: counted, and the first ones told."""

    def __init__(self) -> None:
        self.count = 0
        self._told: list[str] = []
        self._before = 0  # how many earlier events stand for

    def note(self, what: str) -> None:
        """Count one, and say what it is as long as few are told."""
        self.count += 1
        if self.count <= TOLD:
            self._told.append(what)

    def events(self, step: int) -> list[dict[str, Any]]:
        """Those since the last call, as events of kind "warning"."""
        told, more = self._told, self.count - self._before - len(self._told)
        if more:
            told.append(f"{more} more things could not be read")
        self._told, self._before = [], self.count
        row = {"time": time.time(), "step": step, "kind": "warning", "probe": "reading"}
        return [row | {"message": message} for message in told]


def require_run(path: Path) -> None:
    """Check that a path is a run directory.

    Raises:
        FileNotFoundError: there is nothing; the message names what is near.
        NotADirectoryError: it is a file.
        ValueError: the directory holds no run.
    """
    if not path.exists():
        parent = path.absolute().parent
        neighbours = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
        raise FileNotFoundError(f"no run directory {str(path)!r}; {nearest(path.name, neighbours)}")
    if not path.is_dir():
        raise NotADirectoryError(f"expected the directory of a run, got the file {str(path)!r}")
    if not any((path / file).exists() for file in ("run.json", "records.jsonl")):
        inside = sorted(p.parent.name for p in path.glob("*/records.jsonl"))
        hint = f"runs are in {', '.join(inside)}" if inside else "was it written by run_dir=?"
        raise ValueError(
            f"{str(path)!r} is no run directory: expected run.json or records.jsonl in it; {hint}"
        )


def records(folder: Folder, odd: Oddities, version: int) -> Iterator[tuple[Any, ...]]:
    """The rows of records.jsonl that are `checked`; none when the file is missing.

    Args:
        folder: of the run.
        odd: where to say what could not be read.
        version: the format of the run; rows of format 1 get the facts that their notes tell.

    Raises:
        OSError: the file is no plain file, or not ours to read.
    """
    try:
        file = folder.open("records.jsonl", "rb")
    except FileNotFoundError:
        return
    with file:
        yield from records_of(rows(file), odd, version)


def records_of(
    lines: Iterable[tuple[int, dict[str, Any] | None]], odd: Oddities, version: int
) -> Iterator[tuple[Any, ...]]:
    """The rows among numbered lines of records.jsonl that are `checked`."""
    for number, row in lines:
        try:
            if row is None:
                raise ValueError(WHOLE)
            yield checked(row) if version > 1 else understood(checked(row))
        except ValueError as error:
            odd.note(f"records.jsonl line {number}: {error}")


def events(folder: Folder, odd: Oddities) -> Iterator[dict[str, Any]]:
    """The rows of events.jsonl that say what happened, when, and to which probe."""
    try:
        file = folder.open("events.jsonl", "rb")
    except FileNotFoundError:
        return
    except OSError as error:
        odd.note(str(error.strerror))
        return
    with file:
        yield from events_of(rows(file), odd)


def events_of(
    lines: Iterable[tuple[int, dict[str, Any] | None]], odd: Oddities
) -> Iterator[dict[str, Any]]:
    """The rows among numbered lines of events.jsonl that are events."""
    for number, row in lines:
        wrong = WHOLE if row is None else _wrong(row)
        if row is None or wrong:
            odd.note(f"events.jsonl line {number}: {wrong}")
        else:
            yield row


def facts(folder: Folder, odd: Oddities) -> dict[str, Any]:
    """What run.json says, as far as it can be relied on."""
    try:
        found = read_object(folder, "run.json")
    except OSError as error:
        odd.note(str(error.strerror))
        return {}
    if found is None:
        odd.note(f"run.json: {WHOLE}")
        return {}
    kept, wrong = sound(found)
    for what in wrong:
        odd.note(f"run.json: {what}")
    return kept


def _wrong(event: dict[str, Any]) -> str:
    """What is not as it must be in an event; empty for nothing."""
    step, kind, time = event.get("step"), event.get("kind"), event.get("time", 0)
    if type(step) is not int or not 0 <= step < LAST:
        return "step must be an int >= 0"
    if type(time) not in (int, float) or not abs(time) < LAST:
        return "time must be a number of seconds"
    if type(kind) is not str or kind not in _KINDS:
        return f"kind must be one of {_KINDS}"
    if not all(isinstance(event.get(field), str) for field in ("probe", "message")):
        return "probe and message must be texts"
    return ""


def nearest(word: str, words: list[str]) -> str:
    """A hint at what may have been meant.

    Example:
        >>> nearest("curvature/sharpnes", ["curvature/sharpness", "training/loss"])
        "did you mean 'curvature/sharpness'?"
        >>> nearest("x", ["training/loss"])
        'there is: training/loss'
    """
    close = difflib.get_close_matches(word, words, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(w) for w in close)}?"
    if not words:
        return "there are none"
    shown = sorted(words)[:8]
    more = f" and {len(words) - 8} more" if len(words) > 8 else ""
    return f"there {'is' if len(words) == 1 else 'are'}: {', '.join(shown)}{more}"
