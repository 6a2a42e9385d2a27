"""The run directory: append-only `records.jsonl`, `events.jsonl`, `arrays.bin`, and `run.json`."""

import errno
import gc
import json
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from eqtoolbox.record.arrays import Array, frame
from eqtoolbox.record.files import Folder, read_object, rows
from eqtoolbox.record.record import (
    FORMAT,
    LAST,
    SEGMENTS,
    Record,
    checked,
    is_name,
    name_wanted,
)
from eqtoolbox.record.sink import Sink

MANY = 16  # open at once: some may be of runs that nobody closed, nor can reach any more
FILES = (
    "records.jsonl",
    "events.jsonl",
    "arrays.bin",
    "symmetries.json",
    "report.html",
    "run.json",
)
_ENCODER = json.JSONEncoder(allow_nan=False)


class RunDirectory(Sink):
    """Writes one JSON line per record; those of a probe are on disk before the next one runs.

    Vectors behind records go as frames to `arrays.bin`, which is made when the first one comes.

    The directory belongs to one run at a time, which holds it until it is closed or its process
    ends. Moved, it takes the rows along; removed, replaced or reused, it gets none, which is an
    error. A forked child writes nothing.

    What was written survives the end of the process, however sudden. A crash of the machine may
    cost what the operating system had not put on the disk yet: with `sync`, no step before the
    one that is being measured.

    Args:
        path: directory, created if missing.
        resume: append a new segment to the run that is there already.
        sync: at the end of each measured step, wait until all rows are on the disk itself.

    Raises:
        ValueError: the path is empty.
        FileExistsError: the directory holds a run and `resume` is False, or is being written.
        PermissionError, OSError: the directory cannot be written, or holds a link, a pipe or
            the like in place of a file.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, resume: bool = False, sync: bool = False
    ) -> None:
        if not os.fspath(path):
            raise ValueError("run_dir must name a directory, got ''; give None to keep no records")
        self.path = self.home = Path(path)
        self._sync, self._pid = sync, os.getpid()
        self._records: Any = None
        self._events: Any = None
        self._arrays: Any = None
        if len(_WRITING) >= MANY:
            gc.collect()
        self.path.mkdir(parents=True, exist_ok=True)
        self._folder = Folder(self.path)
        try:
            self._begin(resume)
        except BaseException:
            self._release()
            raise
        _WRITING.add(self)

    def _begin(self, resume: bool) -> None:
        """Take hold of the directory, find out what it holds, and open a segment."""
        self._require_no_run(resume)
        self._records = _append(self._folder.open("records.jsonl", "ab", buffering=0))
        held = _locked(self._records, self.path)
        self._require_no_run(resume)  # which may have come and gone in between
        self._events = _append(self._folder.open("events.jsonl", "ab", buffering=0))
        found = read_object(self._folder, "run.json")
        self.next_step, newest = _ends(self._folder)
        oldest = FORMAT if newest < 0 else 1  # where no run.json says it
        self.info: dict[str, Any] = {"format": oldest} | (found or {})
        told, started = self.info.get("segments"), self.info.get("started")
        self.segment = max(newest + 1, told if type(told) is int and 0 <= told < SEGMENTS else 0)
        self.segment = min(self.segment, SEGMENTS - 1)
        self._owner = os.urandom(8).hex()
        self.info |= {
            "started": started if type(started) in (int, float) else time.time(),
            "finished": None, "segments": self.segment + 1, "owner": self._owner,
        }  # fmt: skip
        self._write_info()
        if found is None:
            self._warn("run.json could not be read and was written anew")
        if not held:
            self._warn("this file system has no locks: no second run must write here meanwhile")

    def write(self, record: Record) -> None:
        self.write_all([record])

    def write_all(self, records: Sequence[Record]) -> None:
        for record in records:
            if not is_name(record.name):
                raise ValueError(name_wanted(record.name))
        self._put(self._records, "records.jsonl", _lines([r.to_json() for r in records]))

    def array(self, step: int, name: str, values: NDArray[Any]) -> None:
        content = frame(Array(step=step, name=name, values=values, segment=self.segment))
        if self._arrays is None and not self._inherited:
            self._require_ours(self._records, "records.jsonl")
            self._arrays = self._folder.open("arrays.bin", "ab", buffering=0)
        self._put(self._arrays, "arrays.bin", content)

    def event(self, step: int, kind: str, probe: str, message: str) -> None:
        row = {"time": time.time(), "step": step, "kind": kind, "probe": probe, "message": message}
        self._put(self._events, "events.jsonl", _lines([row]))

    def flush(self) -> None:
        if self._sync and not self._inherited:
            for file in filter(None, (self._records, self._events, self._arrays)):
                os.fsync(file.fileno())

    def describe(self, **facts: Any) -> None:
        """Merge facts into run.json, replaced whole so that it is never half written."""
        if self._inherited:
            return
        self._require_ours(self._records, "records.jsonl")
        there = read_object(self._folder, "run.json")
        if there and there.get("owner") != self._owner:
            raise FileExistsError(
                errno.EEXIST, f"{self.path / 'run.json'} is that of another run by now"
            )
        self.info.update(facts)
        self._write_info()

    def keep(self, name: str, found: Mapping[str, Any]) -> None:
        """As `name`.json, replaced whole; that there is no writing it is no end of the records."""
        if self._inherited:
            return
        self._require_ours(self._records, "records.jsonl")
        content = json.dumps(found, allow_nan=False).encode()
        try:
            self._folder.replace(f"{name}.json", content, sync=self._sync)
        except OSError as error:
            self._warn(f"{name}.json could not be written: {error.strerror or error}")

    def kept(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] | None = None
        with suppress(OSError):  # a link, or a pipe
            found = read_object(self._folder, f"{name}.json")
        if found is None:
            self._warn(f"{name}.json could not be read and is not used")
        return found or {}

    def close(self) -> None:
        if self._inherited or self._records.closed:
            return
        try:
            self.flush()
            self.describe(finished=time.time())
        finally:
            self._release()

    @property
    def _inherited(self) -> bool:
        """Whether this is a copy in a forked child: the run is its parent's."""
        return os.getpid() != self._pid

    def _release(self) -> None:
        for file in (self._records, self._events, self._arrays):
            if file is not None:
                file.close()
        self._folder.close()

    def _require_no_run(self, resume: bool) -> None:
        if resume or self._folder.look("run.json") is None:
            return
        info = read_object(self._folder, "run.json") or {}
        state = "a finished run" if info.get("finished") else "an unfinished run"
        raise FileExistsError(
            f"run_dir {str(self.path)!r} holds {state}; give a new directory, or pass "
            'resume=True to append to it, exist="number" to count up, exist="replace" to remove it'
        )

    def _require_ours(self, file: Any, name: str) -> None:
        if not self._folder.holds(file, name):
            raise FileNotFoundError(
                errno.ENOENT, f"{self.path / name} was removed while it was written"
            )

    def _put(self, file: Any, name: str, content: bytes) -> None:
        """Write whole, or raise: a full disk takes a part, a file that is gone all unsaid."""
        if self._inherited:
            return
        written = file.write(content)
        if written != len(content):
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {self.path / name}")
        self._require_ours(file, name)

    def _write_info(self) -> None:
        content = json.dumps(self.info, indent=1, allow_nan=False, default=str).encode()
        self._folder.replace("run.json", content, sync=self._sync)

    def _warn(self, message: str) -> None:
        self.event(self.next_step, "warning", "monitor", message)


_WRITING: weakref.WeakSet[RunDirectory] = weakref.WeakSet()


def _release_in_child() -> None:
    """A lock lasts as long as any process has the file open: a child must not outlive it."""
    for directory in tuple(_WRITING):
        directory._release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


def cleared(path: Path) -> None:
    """Remove the files of the run in a directory, and nothing else.

    Raises:
        FileExistsError: the run is being written.
        OSError: there is no removing them.
    """
    folder = Folder(path)
    try:
        with folder.open("records.jsonl", "ab", buffering=0) as records:
            _locked(records, path)
            for name in FILES:
                folder.remove(name)
    finally:
        folder.close()


def _locked(file: Any, path: Path) -> bool:
    """Whether the file system let us hold the file until we close it or die.

    Raises:
        FileExistsError: another monitor, of this process or another one, holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileExistsError(
            f"run_dir {str(path)!r} is being written by another monitor; close() that one first, "
            "or give a new directory"
        ) from None
    except OSError:
        return False
    return True


def _ends(folder: Folder) -> tuple[int, int]:
    """The step after the last one on record, and the newest segment; -1 for none."""
    last, segment = -1, -1
    with folder.open("records.jsonl", "rb") as file:
        for _, row in rows(file):
            with suppress(ValueError):
                record = Record.of(checked(row or {}))
                last, segment = max(last, record.step), max(segment, record.segment)
    return min(last + 1, LAST - 1), segment


def _append(file: Any) -> Any:
    """A file that is appended to, on a fresh line even if the last one was torn by a crash."""
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join([_ENCODER.encode(row) + "\n" for row in rows]).encode()
