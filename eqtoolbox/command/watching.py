"""Watching: the terminal view of a run that is redrawn while the run is written."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from eqtoolbox.report.directory import require_run
from eqtoolbox.report.live.glance import Watching
from eqtoolbox.report.live.growing import Growing
from eqtoolbox.report.live.screen import BARS, console, drawn, fitted

SPARED = 4  # a look is paused after for as many times what it took: a long run takes no core


def watch(path: Path, *, every: float = 1.0, once: bool = False, wait: bool = False) -> None:
    """Show a run until it is closed, or until Ctrl-C; the last view stays on the screen.

    Args:
        path: the run directory.
        every: seconds between two looks.
        once: one view; so it is where the output is no terminal that can be redrawn.
        wait: for a run that is not there yet.

    Raises:
        OSError, ValueError: there is no run.
        ImportError: rich is missing.
    """
    with suppress(KeyboardInterrupt):
        terminal = console()
        _require(path, wait, every)
        watching = Watching(Growing(path))
        live = terminal.is_terminal and not terminal.is_dumb_terminal and not once
        plain = not _has(BARS)
        if not live:
            terminal.print(drawn(watching.look(last=True), width=terminal.width, plain=plain))
            return
        _follow(terminal, watching, every, plain)


def _follow(terminal: Any, watching: Watching, every: float, plain: bool) -> None:
    from rich.live import Live

    with Live(console=terminal, auto_refresh=False, vertical_overflow="crop") as live:
        glance = watching.look()
        try:
            while glance.pulse != "finished":
                live.update(fitted(glance, terminal, plain=plain), refresh=True)
                time.sleep(every)
                began = time.monotonic()
                glance = watching.look()
                time.sleep(SPARED * (time.monotonic() - began))
            glance = watching.look(last=True)
        finally:  # what stays is the whole view
            live.update(drawn(glance, width=terminal.width, plain=plain))


def _require(path: Path, wait: bool, every: float) -> None:
    """Check that there is a run, or wait until there is."""
    told = False
    while True:
        try:
            return require_run(path)
        except (FileNotFoundError, ValueError) as error:
            if not wait:
                hint = "start the training with this run_dir=, or give --wait to wait for it"
                raise type(error)(f"{error}; {hint}") from None
        if not told:
            print(f"waiting for a run in {str(path)!r}; Ctrl-C ends it", file=sys.stderr)
            told = True
        time.sleep(every)


def _has(letters: str) -> bool:
    """Whether the output has these letters."""
    try:
        return bool(letters.encode(sys.stdout.encoding or "utf-8"))
    except (LookupError, UnicodeEncodeError):
        return False
