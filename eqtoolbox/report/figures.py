"""Figures: traces over steps as plotly figures in plain JSON values, with a legend of their own."""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.record.record import Record, Verdict
from eqtoolbox.report.drawing import (
    GREY,
    PALETTE,
    POINTS,
    dash,
    faded,
    far_below,
    plain,
    thinned,
    ticks,
)
from eqtoolbox.report.explained import explained
from eqtoolbox.report.words import number, printable, symmetry, typeset, words

if TYPE_CHECKING:
    from eqtoolbox.report.log import Log
    from eqtoolbox.report.table import Rows
    from eqtoolbox.report.trace import Curve

ALIKE = 1.5  # ratio up to which floors are drawn as one
FEW = 40  # points up to which each is marked
MANY = 5  # lines from which on each has a small figure of its own
FIRST = 0.05  # share of the heights that may be nearer to a floor that is not drawn

Figure = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Key:
    """One entry of a legend: what it names, and the traces that it shows and hides."""

    label: str
    colour: str
    traces: tuple[int, ...]  # indices into the data of the figure
    dash: str = "solid"
    value: str = ""  # present level
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One figure with its title and a sentence that says how to read it."""

    slug: str
    title: str
    reading: str
    figure: Figure
    keys: tuple[Key, ...] = ()


@dataclass(kw_only=True)
class Plot:
    """A figure over optimizer steps in the making."""

    last_step: int
    log: bool = False
    scale: float = 1.0  # values are multiplied by it: 100 for per cent
    suffix: str = ""
    points: int = POINTS  # of a trace
    many: int = MANY
    measure: str = ""  # what the axis shows; the title of the panel unless given
    data: list[Figure] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    shapes: list[Figure] = field(default_factory=list)
    notes: list[Figure] = field(default_factory=list)
    zeros: bool = False

    def line(
        self, trace: "Curve", label: str, colour: str, *, judge: bool = False, **style: Any
    ) -> None:
        """Add a trace with the band of its errors.

        Args:
            trace: what to draw.
            label: its name in the legend.
            colour: hexadecimal.
            judge: show the verdict in the legend.
            style: mode, width and dash, that of the colour unless given; band=False for none;
                value of the legend, the level of the trace unless given.
        """
        first = len(self.data)
        steps, values = trace.steps, trace.values
        errors = np.nan_to_num(trace.numbers("stderr"), nan=0.0)
        kept = thinned(values, self.points)
        steps, values, errors = steps[kept], values[kept] * self.scale, errors[kept] * self.scale
        if errors.any() and style.get("band", True):
            self._band(steps, values - errors, values + errors, colour)
        drawn = style.get("dash", dash(colour))
        mode = "lines+markers" if len(steps) <= FEW else "lines"
        self.data.append({
            "type": "scatter", "name": html.escape(printable(label)), "x": plain(steps),
            "y": self._heights(values),
            "mode": style.get("mode", mode), "hovertemplate": self._hover(values),
            "text": [number(v) for v in values] if self._has_zeros(values) else None,
            "line": {"color": colour, "width": style.get("width", 1.8), "dash": drawn},
            "marker": {"color": colour, "size": 4}, "meta": trace.name,
        })  # fmt: skip
        self.keys.append(
            Key(
                label=label,
                colour=colour,
                traces=tuple(range(first, len(self.data))),
                dash=drawn,
                value=_short(style.get("value", trace.now) * self.scale) + self.suffix,
                verdict=trace.verdict if judge else None,
            )
        )

    def floors(self, traces: Sequence["Curve"], colours: Sequence[str]) -> None:
        """Add noise floors as dotted lines that share one legend entry; equal ones as one.

        On a logarithmic axis floors far below all lines are told in words.
        """
        first, heights = len(self.data), self._positive()
        lowest = float(np.quantile(heights, FIRST)) if heights else 0.0
        drawn = [(t, c) for t, c in zip(traces, colours, strict=True) if t.floor]
        sizes = [t.floor or 0.0 for t, _ in drawn]
        if len(drawn) > 1 and max(sizes) < ALIKE * min(sizes):
            drawn = [(drawn[0][0], GREY)]
        top = max(sizes, default=0.0) * self.scale
        if self.log and not self.zeros and (note := far_below(lowest, top, self.suffix)):
            self.notes.append(note)
            return
        for trace, colour in drawn:
            floor, steps = trace.numbers("floor"), trace.steps
            floor, steps = floor[floor > 0], steps[floor > 0]
            kept = thinned(floor, self.points)
            self.data.append({
                "type": "scatter", "mode": "lines", "hoverinfo": "skip", "opacity": 0.8,
                "x": plain(steps[kept]),
                "y": plain(floor[kept] * self.scale),
                "line": {"color": colour, "width": 1.3, "dash": "dot"},
                "meta": "" if colour == GREY else trace.name,
            })  # fmt: skip
        if len(self.data) > first:
            indices = tuple(range(first, len(self.data)))
            self.keys.append(Key(label="noise floor", colour=GREY, traces=indices, dash="dot"))

    def missing(
        self, run: "Log", names: Sequence[str], colour: str = GREY, height: float = 0.02
    ) -> None:
        """Mark on the lower edge where a probe ran and could not say."""
        rows: dict[int, Record] = {}
        for name in names:
            for r in _unanswered(run.rows(name)) if name in run else ():
                rows.setdefault(r.step, r)
        if not rows:
            return
        known = next((key for key in self.keys if key.dash == "tick"), None)
        if known is None:
            known = Key(label="no number", colour=GREY, traces=(), dash="tick")
            self.keys.append(known)
        more = replace(known, traces=(*known.traces, len(self.data)))
        self.keys[self.keys.index(known)] = more
        notes = [f"{r.status.replace('_', ' ')}: {r.note}".rstrip(": ")[:90] for r in rows.values()]
        notes = [html.escape(printable(note)) for note in notes]  # plotly reads tags
        self.data.append({
            "type": "scatter", "mode": "markers", "x": list(rows), "y": [height] * len(rows),
            "yaxis": "y2", "text": notes, "hovertemplate": "%{text}<extra></extra>",
            "marker": {"symbol": "line-ns", "size": 5, "line": {"width": 1.2, "color": colour}},
        })  # fmt: skip

    def level(self, height: float, text: str) -> None:
        """Draw a horizontal reference line with a few words on it."""
        label = {"text": text, "textposition": "start", "yanchor": "bottom", "font": {"size": 11}}
        self.shapes.append({
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height,
            "line": {"color": GREY, "width": 1.2, "dash": "dash"}, "label": label,
        })  # fmt: skip

    def panel(self, slug: str, title: str, reading: str, **yaxis: Any) -> Panel:
        """The finished panel; `yaxis` adds to plotly's description of the axis."""
        room = 0.02 * max(self.last_step, 1)
        axis: Figure = {"ticksuffix": self.suffix, "automargin": True, "nticks": 6}
        axis["title"] = {"text": self._measure(title)}
        layout: Figure = {
            "xaxis": {"range": [-room, self.last_step + room], "title": {"text": "step"}},
            "yaxis": axis | yaxis,
            "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
            "shapes": self.shapes,
            "annotations": self.notes,
            "hovermode": "x unified",
        }
        if self.zeros:
            reading += " Exact zeros sit on the lower edge."
            self._place_zeros()
        layout["yaxis"] |= self._log_axis() if self.log else {"rangemode": "tozero"}
        lines = [key for key in self.keys if key.value]
        if len(lines) > self.many:
            layout["meta"] = {"multiples": [[_said(key), list(key.traces)] for key in lines]}
        figure = {"data": self.data, "layout": layout}
        return Panel(slug=slug, title=title, reading=reading, figure=figure, keys=tuple(self.keys))

    def _measure(self, title: str) -> str:
        """What the axis shows, with its unit."""
        told = [m for t in self.data if (m := explained(str(t.get("meta", ""))))]
        units = {m.unit for m in told}
        unit = self.suffix.strip() or (units.pop() if len(units) == 1 else "")
        unit = {"none": "dimensionless", "that of your loss": "unit of the loss"}.get(unit, unit)
        what = self.measure or title[:1].lower() + title[1:]
        return f"{what} ({unit})" if unit else what

    def _band(
        self, steps: NDArray[Any], low: NDArray[Any], high: NDArray[Any], colour: str
    ) -> None:
        for heights, fill in ((high, None), (low, "tonexty")):
            self.data.append({
                "type": "scatter", "mode": "lines", "x": plain(steps), "line": {"width": 0},
                "y": self._heights(heights), "fill": fill, "fillcolor": faded(colour, 0.2),
                "hoverinfo": "skip",
            })  # fmt: skip

    def _has_zeros(self, values: NDArray[Any]) -> bool:
        return self.log and bool((values <= 0).any())

    def _hover(self, values: NDArray[Any]) -> str:
        shown = "%{text}" if self._has_zeros(values) else "%{y:.3~g}"
        return shown + self.suffix if self.log else shown

    def _heights(self, values: NDArray[Any]) -> list[float | None]:
        if self._has_zeros(values):
            self.zeros = True
        return plain(values)

    def _positive(self) -> list[float]:
        return [y for t in self.data if t.get("yaxis") != "y2" for y in t["y"] if y and y > 0]

    def _log_axis(self) -> Figure:
        heights = self._positive() or [1.0]
        marks = ticks(min(heights), max(heights))
        if sum(min(heights) <= at <= max(heights) for at, _ in marks) < 2:
            return {"type": "log"}  # a short axis: plotly has ticks between
        labels = [label + self.suffix for _, label in marks]
        return {"type": "log", "tickvals": [height for height, _ in marks], "ticktext": labels}

    def _place_zeros(self) -> None:
        """Lift what a log axis cannot show to a decade below everything else."""
        heights = self._positive()
        edge = 10.0 ** (math.floor(math.log10(min(heights))) - 1) if heights else 1e-16
        for t in self.data:
            t["y"] = [edge if y is not None and y <= 0 else y for y in t["y"]]


def by_target(
    run: "Log",
    found: Mapping[str, "Curve"],
    plot: Plot,
    quantity: str,
    title: str,
    reading: str,
) -> Iterator[Panel]:
    """One line for every symmetry or family that the quantity was measured for."""
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(found))]
    for (name, t), colour in zip(found.items(), colours, strict=True):
        label = symmetry(name) if quantity.startswith("equivariance/") else words(name)
        plot.line(t, label, colour, judge=True)
    plot.floors(list(found.values()), colours)
    plot.missing(run, [f"{quantity}/{name}" for name in found])
    if found:
        yield plot.panel(quantity.replace("/", "-"), title, reading)


def _unanswered(rows: "Rows") -> "Rows":
    """Attempts that gave no number."""
    answered = rows.having("ok") & ~np.isnan(rows.numbers("value"))
    return rows.where(~(answered | rows.having("skipped_budget") | rows.having("not_applicable")))


def _said(key: Key) -> str:
    """A label that stands on the figure itself."""
    return typeset(" ".join(filter(None, (key.label, key.value, key.verdict))))


def _short(value: float) -> str:
    text = number(value)
    return number(value, 2) if "e" in text else text
