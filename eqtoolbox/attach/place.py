"""Place: which directory a run gets, and the forgotten monitors that stand in its way."""

import builtins
import sys
import weakref
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import torch

from eqtoolbox.expect.kinds import Location
from eqtoolbox.sinks.jsonl import cleared
from eqtoolbox.watch.journal import logger
from eqtoolbox.watch.monitor import Monitor, monitors_of
from eqtoolbox.watch.options import Exist

_OPEN: "weakref.WeakKeyDictionary[Monitor, Path | None]" = weakref.WeakKeyDictionary()


def interactive() -> bool:
    """Whether a person types: in a notebook, IPython or Python's own prompt."""
    return hasattr(builtins, "__IPYTHON__") or hasattr(sys, "ps1")


def placed(run_dir: Location, exist: Exist) -> Path:
    """The directory that a new run gets where `run_dir` was asked for.

    Args:
        run_dir: the one that was asked for.
        exist: "error" leaves it to whoever opens it; "number" takes the first of run, run-2,
            run-3, ... without a run; "replace" removes the files of the run that is there.

    Raises:
        FileExistsError: the run that is to be replaced is being written.
    """
    path = Path(run_dir)
    if exist == "number":
        names = (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in count(1))
        return next(p for p in names if not (p / "run.json").exists())
    if exist == "replace" and (path / "run.json").exists():
        cleared(path)
    return path


def opened(monitor: Monitor, run_dir: Path | None) -> None:
    """Remember a monitor until it is closed or forgotten by everybody."""
    _OPEN[monitor] = None if run_dir is None else run_dir.resolve()


def let_go(
    optimizers: Sequence[torch.optim.Optimizer], run_dir: Location | None, attached_at: str
) -> None:
    """Close the monitors that an earlier run of the same cell left behind; says so in one line.

    A person who runs a cell again means the new monitor: those of the same line, optimizer or
    directory are closed. A program that attaches twice is told of its mistake instead.
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
    for monitor, place in [*_OPEN.items()]:
        same = attached_at == monitor.attached_at or (wanted is not None and place == wanted)
        if same and monitor.attached:
            found.add(monitor)
    return found
