"""The run directory: append-only `records.jsonl`, `events.jsonl`, `arrays.bin`, and `run.json`."""

import errno
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from eqtoolbox.arrays import Array, frame
from eqtoolbox.record import Record
from eqtoolbox.sink import Sink

FORMAT = 1
_ENCODER = json.JSONEncoder(allow_nan=False)


class RunDirectory(Sink):
    """Writes one JSON line per record; those of a probe are on disk before the next one runs.

    Vectors behind records go as frames to `arrays.bin`, which is made when the first one comes.

    Args:
        path: directory, created if missing.
        resume: append a new segment to the run that is there already.

    Raises:
        FileExistsError: the directory holds a run and `resume` is False.
        PermissionError, OSError: the directory cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool = False) -> None:
        self.path = Path(path)
        self.info: dict[str, Any] = {"format": FORMAT, "segments": 0}
        if (self.path / "run.json").exists():
            self.info = json.loads((self.path / "run.json").read_text())
            if not resume:
                state = "a finished run" if self.info.get("finished") else "an unfinished run"
                raise FileExistsError(
                    f"run_dir {str(path)!r} holds {state}; give a new directory, or pass "
                    "resume=True to append to it"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        self.segment = int(self.info["segments"])
        self.next_step = _next_step(self.path / "records.jsonl")
        started = self.info.get("started", time.time())
        self.describe(started=started, finished=None, segments=self.segment + 1)
        self._records = _append(self.path / "records.jsonl")
        self._events = _append(self.path / "events.jsonl")
        self._arrays: Any = None

    def write(self, record: Record) -> None:
        self.write_all([record])

    def write_all(self, records: Sequence[Record]) -> None:
        _lines(self._records, [record.to_json() for record in records])

    def array(self, step: int, name: str, values: NDArray[Any]) -> None:
        if self._arrays is None:
            self._arrays = (self.path / "arrays.bin").open("ab")
        self._arrays.write(frame(Array(step=step, name=name, values=values, segment=self.segment)))
        self._arrays.flush()

    def event(self, step: int, kind: str, probe: str, message: str) -> None:
        row = {"time": time.time(), "step": step, "kind": kind, "probe": probe, "message": message}
        _lines(self._events, [row])

    def describe(self, **facts: Any) -> None:
        """Merge facts into run.json, replaced whole so that it is never half written."""
        self.info.update(facts)
        draft = self.path / "run.json.new"
        draft.write_text(json.dumps(self.info, indent=1, allow_nan=False, default=str))
        draft.replace(self.path / "run.json")

    def close(self) -> None:
        if self._records.closed:
            return
        self._records.close()
        self._events.close()
        if self._arrays is not None:
            self._arrays.close()
        self.describe(finished=time.time())


def _next_step(path: Path) -> int:
    """The step after the last one on record; torn lines do not count."""
    last = -1
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                with suppress(ValueError, KeyError, TypeError):
                    last = max(last, int(json.loads(line)["step"]))
    return last + 1


def _append(path: Path) -> Any:
    """Open for appending, on a fresh line even if the last one was torn by a crash."""
    file = path.open("a+b", buffering=0)  # nothing waits in memory for a kill or a fork
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


def _lines(file: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows whole, or raise: a full disk takes a part, a deleted file all without a word."""
    lines = "".join([_ENCODER.encode(row) + "\n" for row in rows]).encode()
    written = file.write(lines)
    if written != len(lines):
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {file.name}")
    if os.fstat(file.fileno()).st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, f"{file.name} was removed while it was written")
