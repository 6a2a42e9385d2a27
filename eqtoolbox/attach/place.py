"""Place: which directory a run gets, and the forgotten monitors that stand in its way."""

import atexit
import builtins
import os
import re
import sys
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FrameType

import torch

from eqtoolbox.expect.kinds import Location
from eqtoolbox.sinks.jsonl import RunDirectory, cleared
from eqtoolbox.watch.journal import logger
from eqtoolbox.watch.monitor import Monitor, monitors_of
from eqtoolbox.watch.options import Exist


@dataclass(frozen=True)
class _Opened:
    """What is remembered of a monitor that was attached."""

    place: Path | None
    lines: tuple[str, ...]
    execution: int | None


_COUNT = re.compile(r"^<ipython-input-\d+-")  # a cell is called by its count and its text
_OPEN: "weakref.WeakKeyDictionary[Monitor, _Opened]" = weakref.WeakKeyDictionary()


def interactive() -> bool:
    """Whether a person types: in a notebook, IPython or Python's own prompt."""
    return hasattr(builtins, "__IPYTHON__") or hasattr(sys, "ps1")


def directory(run_dir: Location, exist: Exist, *, resume: bool, sync: bool) -> RunDirectory:
    """The directory that a run gets where `run_dir` was asked for.

    Args:
        run_dir: the one that was asked for.
        exist: of a new run: "error" takes that or none; "number" the first of run, run-2, run-3,
            ... that holds no run and that nobody takes meanwhile; "replace" removes the files of
            the run that is there.
        resume: whether the run that is there goes on.
        sync: of `RunDirectory`.

    Raises:
        FileExistsError: the run that is to be replaced is being written, or is not to be.
        OSError: the directory cannot be written.
    """
    path = Path(run_dir)
    if exist == "number" and not resume:
        path = path if path.name not in ("", "..") else Path(os.path.abspath(path))
        for n in count(1):
            free = path if n == 1 else path.with_name(f"{path.name}-{n}")
            if not _taken(free):
                with suppress(FileExistsError):  # a file, or another run by now
                    return RunDirectory(free, sync=sync)
    if exist == "replace" and not resume and _taken(path):
        cleared(path)
    return RunDirectory(path, resume=resume, sync=sync)


def _taken(path: Path) -> bool:
    """Whether there is a run, or what is left of one."""
    return any(os.path.lexists(path / name) for name in ("run.json", "records.jsonl"))


def opened(monitor: Monitor, run_dir: Path | None) -> None:
    """Remember a monitor until it is closed or forgotten by everybody."""
    place = None if run_dir is None else run_dir.resolve()
    _OPEN[monitor] = _Opened(place, _lines(monitor.attached_at), _execution())


@atexit.register
def _program_ends() -> None:
    """Close what nobody closed, after the error that ended the program if one did."""
    error = None if interactive() else getattr(sys, "last_value", None)
    with ExitStack() as ends:  # all of them, though one fails: Python then prints why
        for monitor in [*_OPEN]:
            if monitor.abandoned:
                ends.callback(monitor.__exit__, None, error, None)


def let_go(
    optimizers: Sequence[torch.optim.Optimizer], run_dir: Location | None, attached_at: str
) -> None:
    """Close the monitors that an earlier run of the same cell left behind; says so in one line.

    A person who runs a cell again means the new monitor: those of the same lines in an earlier
    execution, and those of the same optimizer or directory are closed. Several that one execution
    attaches, in a loop or by a function of another cell, all live. A program that attaches twice
    is told of its mistake instead.
    """
    if not interactive():
        return
    wanted = None if run_dir is None else Path(run_dir).resolve()
    for other in _in_the_way(optimizers, wanted, attached_at):
        other.close()
        logger.warning("closed the forgotten monitor that was attached at %s", other.attached_at)


def _in_the_way(
    optimizers: Sequence[torch.optim.Optimizer], wanted: Path | None, attached_at: str
) -> set[Monitor]:
    found = {m for optimizer in optimizers for m in monitors_of(optimizer)}
    lines, execution = _lines(attached_at), _execution()
    for monitor, known in [*_OPEN.items()]:
        again = execution is not None and execution != known.execution and lines == known.lines
        if monitor.attached and (again or (wanted is not None and known.place == wanted)):
            found.add(monitor)
    return found


def _execution() -> int | None:
    """Which execution of a cell this is; None where there are no cells."""
    shell = getattr(builtins, "get_ipython", lambda: None)()
    return getattr(shell, "execution_count", None)


def _lines(attached_at: str) -> tuple[str, ...]:
    """The lines of cells that lead to a call of `attach`, the outermost first, and the last one."""
    typed, lines = vars(sys.modules["__main__"]), [attached_at]
    caller: FrameType | None = sys._getframe(1)
    while caller is not None:
        if caller.f_globals is typed:
            lines.insert(0, f"{caller.f_code.co_filename}:{caller.f_lineno}")
        caller = caller.f_back
    return tuple(_COUNT.sub("<ipython-input-", line) for line in lines)
