"""Overlays: one figure a record, one line a run, the same run alike in all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eqtoolbox.report.drawing import PALETTE, POINTS, wide
from eqtoolbox.report.explained import explained
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.log import Log
from eqtoolbox.report.topics.charges import drifts, moved
from eqtoolbox.report.topics.loss import Losses
from eqtoolbox.report.trace import Curve, trace
from eqtoolbox.report.words import symmetry, words

DASHES = (  # 5 by 12 colours: all differ; none as short as the dots of noise floors
    "solid", "8px,4px", "10px,3px,3px,3px", "16px,5px", "16px,3px,3px,3px,3px,3px",
)  # fmt: skip
FULL = 4  # runs up to which a line has all its points and the band of its errors
MOST = 12  # figures of one quantity
DRAWN = {  # quantities by topic, with what their figures are called
    "equivariance": {
        "equivariance/relative_error": "Relative error",
        "equivariance/orbit_variance": "Orbit variance",
        "equivariance/percent_of_loss": "Cost of the violation",
    },
    "conservation": {
        "conservation/drift": "Drift of conserved charges",
        "noether/first_order": "First-order law",
        "noether/second_order": "Second-order law",
    },
    "curvature": {
        "curvature/sharpness": "Sharpness",
        "curvature/stability": "Stability",
        "tracking/sharpness": "Tracked sharpness",
        "curvature/orbit_free_sharpness": "Sharpness without symmetry orbits",
        "curvature/smallest": "Smallest eigenvalue",
        "curvature/gradient_overlap": "Gradient in the sharpest directions",
    },
    "cost": {"cost/overhead": "Overhead"},
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A run and how it is drawn."""

    run: Log
    label: str
    colour: str
    dash: str


def lines(runs: Sequence[Log], names: Sequence[str]) -> list[Line]:
    """Every run with a colour and a dash of its own."""
    return [
        Line(
            run=run,
            label=name,
            colour=PALETTE[i % len(PALETTE)],
            dash=DASHES[i % len(DASHES)],
        )
        for i, (run, name) in enumerate(zip(runs, names, strict=True))
    ]


def loss_overlay(among: Sequence[Line]) -> Panel | None:
    """The training losses of all runs."""
    found = [(line, known) for line in among if (known := Losses.of(line.run)) is not None]
    if not found:
        return None
    plot = _plot(among, wide(np.concatenate([losses.values for _, losses in found])))
    for line, losses in found:
        losses.draw(plot, line.label, line.colour, line.dash)
    _missing(plot, among, "training/loss")
    reading = f"One line a run, {'logarithmic' if plot.log else 'linear'} axis"
    noisy = any(losses.noisy for _, losses in found)
    reading += "; bold lines are running medians." if noisy else "."
    return plot.panel("loss", "Training loss", reading)


def overlays(among: Sequence[Line], quantity: str, title: str) -> tuple[list[Panel], int]:
    """A figure for every target of a quantity that a run has a number of.

    Returns:
        the figures, and how many targets have none because they are too many.
    """
    curves = [(line, _curves(line.run, quantity)) for line in among]
    names = list(dict.fromkeys(name for _, found in curves for name in found))
    panels = [
        _overlay(
            among,
            [(line, found[name]) for line, found in curves if name in found],
            name,
            title,
            told=not i,
        )
        for i, name in enumerate(names[:MOST])
    ]
    return panels, len(names) - len(panels)


def _curves(run: Log, quantity: str) -> dict[str, Curve]:
    """Traces of a quantity by name, drifts with the floor that rounding gives them."""
    if quantity == "conservation/drift":
        return {f"{quantity}/{family}": moved(t) for family, t in drifts(run).items()}
    names = [quantity, *(f"{quantity}/{target}" for target in run.targets(quantity))]
    return {name: t for name in names if (t := trace(run, name)) is not None}


def _overlay(
    among: Sequence[Line],
    found: Sequence[tuple[Line, Curve]],
    name: str,
    title: str,
    told: bool,
) -> Panel:
    """One figure; `told`: with the sentences that say how to read it."""
    values = np.concatenate([t.values for _, t in found])
    floors = np.concatenate([t.numbers("floor") for _, t in found])
    positive = np.concatenate([values[values > 0], floors[floors > 0]])
    plot = _plot(among, wide(positive) and not (values < 0).any())
    if found[0][1].last.unit in ("%", "percent"):
        plot.suffix = " %"
    elif name.startswith(("conservation/drift/", "cost/overhead")) or name.endswith("_overlap"):
        plot.scale, plot.suffix = 100.0, " %"
    band = len(among) <= FULL
    for line, t in found:
        plot.line(t, line.label, line.colour, judge=True, dash=line.dash, band=band)
    plot.floors([t for _, t in found], [line.colour for line, _ in found])
    _missing(plot, among, name)
    if name == "curvature/stability":
        plot.level(1.0, "edge of stability")
    meaning, target = explained(name) if told else None, name.split("/", 2)[2:]
    what = [symmetry(t) if name.startswith("equivariance/") else words(t) for t in target]
    reading = f"{meaning.meaning} {meaning.reading}" if meaning else ""
    return plot.panel(name.replace("/", "-"), ": ".join([title, *what]), reading)


def _plot(among: Sequence[Line], log: bool) -> Plot:
    last = max(line.run.last_step for line in among)
    points = max(POINTS // 5, POINTS * FULL // max(FULL, len(among)))
    return Plot(last_step=last, log=log, points=points)


def _missing(plot: Plot, among: Sequence[Line], name: str) -> None:
    for i, line in enumerate(among):
        plot.missing(line.run, [name], line.colour, 0.02 + 0.035 * i)
