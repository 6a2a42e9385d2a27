"""Panels on units: how near the nearest are to being equal or zero, and where they go."""

from collections.abc import Iterator

from eqtoolbox.report.drawing import PALETTE
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.log import Log
from eqtoolbox.report.trace import trace, traces

DISTANCES = {"permutation": "two units equal", "sign_flip": "a unit zero"}


def discrete_panels(run: Log) -> Iterator[Panel]:
    """Distances to the symmetric points, margins there, and counts of duplicate and dead units."""
    found = traces(run, "discrete/distance")
    log = all(r.value > 0 for t in found.values() for r in t.records)
    plot = Plot(last_step=run.last_step, log=log)
    colours = PALETTE[: len(found)]
    for (family, t), colour in zip(found.items(), colours, strict=True):
        plot.line(t, DISTANCES.get(family, family), colour)
    plot.floors(list(found.values()), colours)
    if found:
        reading = (
            "Relative distance of the nearest units to a symmetric point: near 1 units are "
            "unrelated, at the dotted floor two are duplicates."
        )
        yield plot.panel("discrete-distance", "Distance to symmetric points", reading)
    yield from _margins(run)
    yield from _counts(run)
    yield from _shares(run)


def _margins(run: Log) -> Iterator[Panel]:
    plot = Plot(last_step=run.last_step)
    for i, (rank, t) in enumerate(traces(run, "discrete/margin").items()):
        plot.line(t, f"nearest {rank}", PALETTE[i % len(PALETTE)])
    if plot.data:
        plot.level(0.0, "merge above")
        reading = (
            "Smallest curvature plus weight decay in the directions that tell the nearest units "
            "apart: above 0 they merge, below they part."
        )
        yield plot.panel("discrete-margin", "Do the nearest units merge?", reading)


def _counts(run: Log) -> Iterator[Panel]:
    plot = Plot(last_step=run.last_step)
    for i, name in enumerate(("duplicates", "dead")):
        t = trace(run, f"discrete/{name}")
        if t is not None and any(r.value for r in t.records):
            plot.line(t, name, PALETTE[i])
    if plot.data:
        reading = "Pairs of units that are equal to rounding, and units that do nothing."
        yield plot.panel("discrete-counts", "Duplicate and dead units", reading)


def _shares(run: Log) -> Iterator[Panel]:
    """Layers with dead units, the worst ones."""
    found = traces(run, "discrete/dead_share")
    worst = sorted(found.items(), key=lambda item: -item[1].last.value)[: len(PALETTE)]
    plot = Plot(last_step=run.last_step, scale=100.0, suffix=" %")
    for (layer, t), colour in zip(worst, PALETTE, strict=False):
        plot.line(t, layer, colour)
    if plot.data:
        reading = "Share of each layer's units that did nothing on batch after batch; at 100 % no "
        reading += "input passes the layer."
        yield plot.panel("discrete-dead-share", "Dead units by layer", reading)
