"""The screen: a glance as the terminal shows it, whatever the run holds taken literally."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.report.drawing import WIDE
from eqtoolbox.report.live.glance import Glance
from eqtoolbox.report.live.pulse import ago, rate
from eqtoolbox.report.words import number, plural, printable

BARS, PLAIN = "▁▂▃▄▅▆▇█", "_.-=+*#@"
_ONE_LINE = str.maketrans("\n\t", "  ")
LOST = "!"  # in the place of a loss that is not finite
LEAST = 3  # what can be left out of a view
OLD = 0.9  # share of the steps before which a measurement says its step
_COLOURS = {
    "alarm": "bold red", "warning": "yellow", "note": "blue", "good": "green",
    "running": "green", "finished": "blue", "silent": "yellow",
    "violated": "yellow", "holds": "green", "beyond the edge": "yellow",
}  # fmt: skip


def console() -> Any:
    """A console of rich on the standard output, which writes every letter in some way.

    Raises:
        ImportError: rich is missing.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise ImportError(
            f'watch needs {error.name}: pip install "eqtoolbox[live]"; `eqtoolbox tail -f` shows '
            "records without it"
        ) from error
    with suppress(AttributeError):  # a stream of somebody's own
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    return Console(markup=False, highlight=False, emoji=False)


def fitted(glance: Glance, terminal: Any, *, plain: bool = False) -> Any:
    """A glance as far as the terminal is high enough: see `spare` of `drawn`."""
    for spare in range(LEAST + 1):
        view = drawn(glance, width=terminal.width, plain=plain, spare=spare)
        if len(terminal.render_lines(view, pad=False)) < terminal.height:
            break
    return view


def drawn(glance: Glance, *, width: int, plain: bool = False, spare: int = 0) -> Any:
    """A glance as something that a console of rich prints.

    No text is read as markup, and no character that would steer the terminal is passed on.

    Args:
        glance: what to show.
        width: columns of the terminal.
        plain: the terminal has only ASCII.
        spare: what to leave out: 1 the events, 2 also what to try, 3 all findings but the gravest.
    """
    from rich.console import Group

    parts: list[Any] = [_text(*_header(glance))]
    if glance.losses.size:
        last = number(float(glance.losses[-1]))
        line = spark(glance.losses, min(60, width - len(last) - 9), PLAIN if plain else BARS)
        parts.append(_text(("loss  ", "dim"), (last, "bold"), ("  ", ""), (line, "cyan")))
    parts += ["", _grid(_findings(glance, spare), folded=1)]
    if glance.quantities:
        parts += ["", _grid(_quantities(glance), folded=1)]
    if glance.events and not spare:
        parts += ["", *(_text((event, "dim"), no_wrap=True) for event in glance.events)]
    return Group(*parts)


def _text(*parts: tuple[str, str], no_wrap: bool = False) -> Any:
    """Texts with their styles, one behind the other, on one line that steers no terminal."""
    from rich.text import Text

    said = [(printable(text.translate(_ONE_LINE)), style) for text, style in parts]
    return Text.assemble(*said, no_wrap=no_wrap, overflow="ellipsis" if no_wrap else "fold")


def _grid(rows: Iterable[Sequence[tuple[str, str]]], *, folded: int) -> Any:
    """Rows of cells without lines; one column takes the room that the others leave."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    for row in rows:
        while len(grid.columns) < len(row):
            grid.add_column(no_wrap=len(grid.columns) != folded)
        grid.add_row(*(_text(cell) for cell in row))
    return grid


def spark(values: NDArray[np.float64], width: int, bars: str = BARS) -> str:
    """Values as bars of eight heights, medians of stretches; logarithmic where they span far.

    Args:
        values: (n,), by step; what is not finite is an exclamation mark.
        width: columns at most; below 1 nothing is drawn.
        bars: from low to high.

    Example:
        >>> spark(np.array([8.0, 6.0, 4.0, 2.0, np.nan, 1.0]), 10)
        '█▆▄▂!▁'
    """
    if width < 1:
        return ""
    largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    values = np.ldexp(values, -np.frexp(largest)[1])  # exact, and no sum below overflows
    stretches = np.array_split(values, min(width, len(values)))
    middle = np.array([np.median(s) if np.isfinite(s).all() else np.nan for s in stretches])
    known = middle[np.isfinite(middle)]
    if not known.size:
        return LOST * len(middle)
    if known.min() > 0 and known.max() > WIDE * known.min():
        middle, known = np.log(middle), np.log(known)
    low, high = float(known.min()), float(known.max())
    span = high - low or 1.0
    heights = (middle - low) / span * (len(bars) - 1)
    return "".join(bars[round(h)] if np.isfinite(h) else LOST for h in heights.tolist())


def _header(glance: Glance) -> Iterator[tuple[str, str]]:
    yield glance.name, "bold"
    yield f"  {glance.model}  step {glance.step:,}", ""
    if glance.speed:
        yield f"  {rate(glance.speed)}", ""
    colour = _COLOURS[glance.pulse]
    if glance.pulse == "silent":
        yield f"  silent: nothing written for {ago(glance.age)}", colour
    else:
        yield f"  {glance.pulse}", colour
        yield f", last write {ago(glance.age)} ago", "dim"


def _findings(glance: Glance, spare: int) -> Iterator[tuple[tuple[str, str], ...]]:
    if not glance.findings:
        yield ("", ""), ("nothing found yet", "dim")
    told: set[tuple[str, ...]] = set()  # what to try, said once
    shown = glance.findings[: 1 if spare == LEAST else None]
    for finding in shown:
        colour = _COLOURS[finding.level]
        yield (finding.level, colour), (finding.text, "bold" if finding.level == "alarm" else "")
        if (
            spare < 2
            and finding.level in ("alarm", "warning")
            and finding.remedy not in {(), *told}
        ):
            told.add(finding.remedy)
            yield ("", ""), (f"Try: {'; '.join(finding.remedy)}.", "dim")
    left = glance.left_out + len(glance.findings) - len(shown)
    if left:
        yield ("", ""), (plural(left, "further remark"), "dim")


def _quantities(glance: Glance) -> Iterator[tuple[tuple[str, str], ...]]:
    for q in glance.quantities:
        size = ", ".join(filter(None, (q.value, q.against)))
        old = f"step {q.step:,}" if q.step < OLD * glance.step else ""
        state = ", ".join(filter(None, (q.verdict, old)))
        yield (q.what, ""), (size, ""), (state, _COLOURS.get(q.verdict, ""))
