"""Charges: how far they drifted, by family and unit by unit, and whether their law held."""

import html
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.record.facts import NO_FACTS, Facts
from eqtoolbox.report.drawing import PALETTE, plain
from eqtoolbox.report.figures import Figure, Panel, Plot
from eqtoolbox.report.log import Log
from eqtoolbox.report.table import Rows
from eqtoolbox.report.trace import Curve, judged, trace, traces, vectors
from eqtoolbox.report.words import plural, printable, words

ROUNDING = {"float64": 2.2e-16, "float32": 1.2e-7, "float16": 9.8e-4, "bfloat16": 7.8e-3}
UNITS, STEPS = 96, 120  # rows and columns of a heat map at most
CLIPPED = 0.99  # share of the cells within the colour scale
SCALE = [[0.0, PALETTE[0]], [0.5, "rgba(125,133,144,0.10)"], [1.0, PALETTE[1]]]


def drifts(run: Log) -> dict[str, Curve]:
    """Drifts by family; without a floor of their own they get that of rounding.

    Every update rounds the parameters by up to one unit in their last place; over n steps these
    errors add up like a random walk, to sqrt(n) units.
    """
    unit = ROUNDING.get(str(run.info.get("dtype")))
    found = traces(run, "conservation/drift")
    return found if unit is None else {family: _rounded(t, unit) for family, t in found.items()}


def _rounded(drift: Curve, unit: float) -> Curve:
    known = drift.numbers("floor")
    floors = np.where(known > 0, known, unit * np.sqrt(drift.steps + 1.0))
    if isinstance(drift.records, Rows):
        return replace(drift, records=drift.records.with_floors(floors))
    pairs = zip(drift.records, floors.tolist(), strict=True)
    return replace(drift, records=tuple(replace(r, floor=floor) for r, floor in pairs))


def moved(drift: Curve) -> Curve:
    """A drift without its first records that are zero because the start is the reference."""
    begin = int(np.argmax(drift.values != 0))  # 0 if all are zero
    return Curve(records=drift.records[begin:])


def law_held(run: Log, family: str) -> bool:
    """Whether the gradient is known to have obeyed the family's law at every step."""
    law = trace(run, f"conservation/first_order/{family}")
    return law is not None and all(judged(r) == "holds" for r in law.records)


def law_undecided(run: Log, family: str) -> bool:
    """Whether the gradient's law is that of an approximate symmetry, above rounding, not broken."""
    law = trace(run, f"conservation/first_order/{family}")
    return (
        law is not None
        and law.verdict != "violated"
        and any(r.verdict == "unresolved" and r.facts.flag("epsilon") for r in law.records)
    )


def drift_panel(run: Log) -> Iterator[Panel]:
    """Drift of the charges of every family since the start."""
    found = {family: moved(t) for family, t in drifts(run).items()}
    plot = Plot(last_step=run.last_step, log=True, scale=100.0, suffix=" %", measure="drift")
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(found))]
    for (family, drift), colour in zip(found.items(), colours, strict=True):
        held = judged(drift.last) == "holds"
        plot.line(drift, words(family), colour, judge=held, value=drift.last.value)
    plot.floors(list(found.values()), colours)
    plot.missing(run, [f"conservation/drift/{family}" for family in found])
    reading = (
        "Change of each family's charges since the start, relative to their size, on a "
        "logarithmic axis; gradient flow would keep it near the noise floor."
    )
    if found:
        yield plot.panel("conservation-drift", "Drift of conserved charges", reading)


def charge_panels(run: Log) -> Iterator[Panel]:
    """Drift of the charge of every unit over the steps at which vectors were kept."""
    for name in run.arrays():
        probe, quantity, family = [*name.split("/", 2), "", ""][:3]
        if (probe, quantity) == ("conservation", "unit_drift"):
            steps, values = vectors(run, name)
            if values.ndim == 2 and values.shape[1] > 1 and len(steps) > 1:
                facts = run.rows(name)[-1].facts if name in run else NO_FACTS
                yield _heat(family, steps, values.T, _labels(facts))


def _heat(
    family: str,
    steps: NDArray[np.int64],
    values: NDArray[np.float64],
    labels: list[tuple[int, str]],
) -> Panel:
    """A heat map; values are (units, steps)."""
    total = len(values)
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(STEPS, len(steps))).round().astype(int))
    cells, starts = strongest(values[:, chosen], UNITS)
    finite = np.abs(cells[np.isfinite(cells)])
    top = float(np.quantile(finite, CLIPPED)) if finite.size else 0.0
    top = top or float(finite.max(initial=0.0)) or 1.0
    figure: Figure = {
        "type": "heatmap", "x": [int(s) for s in steps[chosen]],
        "y": [int(s) for s in starts],
        "z": [plain(100 * row) for row in cells], "zmin": -100 * top, "zmax": 100 * top,
        "colorscale": SCALE, "hovertemplate": "step %{x}, unit %{y}: %{z:.3~g} %<extra></extra>",
        "colorbar": {"thickness": 9, "outlinewidth": 0, "ticksuffix": " %", "nticks": 5},
    }  # fmt: skip
    layout: Figure = {
        "xaxis": {"title": {"text": "step"}, "showgrid": False},
        "yaxis": {
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
            "autorange": "reversed",
            "title": {"text": "unit"},
        },
    }
    if labels:
        layout["yaxis"] |= {
            "tickvals": [at for at, _ in labels],
            "ticktext": [n for _, n in labels],
        }
    shown = f"{plural(total, 'unit')}"
    if len(cells) < total:
        shown += f"; each row is the strongest of {math.ceil(total / len(cells))} neighbours"
    reading = (
        f"Change of each unit's charge since the start, relative to its own size ({shown}). A "
        "single dark row is a unit that something moves on its own."
    )
    slug, title = f"units-{family}", f"Drift of the {words(family)} charges, unit by unit"
    return Panel(
        slug=slug, title=title, reading=reading, figure={"data": [figure], "layout": layout}
    )


def strongest(
    values: NDArray[np.float64], limit: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """At most `limit` rows, each cell the entry of largest size among the rows it stands for.

    Returns:
        cells (rows, steps) and the first of the rows that each stands for, (rows,).

    Example:
        >>> strongest(np.array([[1.0], [-3.0], [0.5], [0.0]]), 2)[0].ravel()
        array([-3. ,  0.5])
    """
    parts = np.array_split(np.arange(len(values)), min(limit, len(values)))
    cells = []
    for part in parts:
        block = np.nan_to_num(values[part], nan=0.0)
        where = np.abs(block).argmax(axis=0)
        cells.append(values[part][where, np.arange(values.shape[1])])
    return np.array(cells), np.array([part[0] for part in parts], dtype=np.int64)


def _labels(facts: Facts) -> list[tuple[int, str]]:
    """Where each symmetry's units begin: conv1 with 8 and conv2 as (0, conv1), (8, conv2)."""
    names, sizes = facts.texts("members"), facts.counts("sizes")
    starts = accumulate(sizes, initial=0)
    return [(at, html.escape(printable(n))) for at, n in zip(starts, names, strict=False)]
