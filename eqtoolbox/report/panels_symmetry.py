"""Panels on symmetry: equivariance errors, conserved charges and their causes, law residuals."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from eqtoolbox.report.drawing import GREY, PALETTE, arrays, faded
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.log import Log
from eqtoolbox.report.panels_charges import charge_panels
from eqtoolbox.report.rules_conservation import cause_words, drifts, law_held, law_undecided
from eqtoolbox.report.rules_symmetry import fraction
from eqtoolbox.report.trace import Trace, judged, trace, traces
from eqtoolbox.report.words import CAUSES, symmetry, words

CAUSE_COLOURS = {
    "symmetry": PALETTE[1],
    "implicit_bias": PALETTE[0],
    "decay": PALETTE[4],
    "optimizer": PALETTE[3],
    "finite_step": PALETTE[5],
    "learning_rates": PALETTE[2],
    "unmeasured": GREY,
}
VISIBLE = 5e-3  # share below which a cause is left out of the figure


def equivariance_panels(run: Log) -> Iterator[Panel]:
    """How much each data symmetry is violated, and what the violation costs."""
    error = Plot(last_step=run.last_step, log=True)
    yield from _by_target(
        run,
        error,
        "equivariance/relative_error",
        "Relative error",
        "How far f(gx) is from g f(x), relative to the output, on a logarithmic axis: near its "
        "dotted floor a symmetry holds as far as can be seen, near 1.4 the two are unrelated.",
    )
    yield from _by_target(
        run,
        Plot(last_step=run.last_step),
        "equivariance/orbit_variance",
        "Orbit variance",
        "Share of the output's variance that the transformation alone causes: at 0 the "
        "symmetry holds, at 1 the output depends on nothing else.",
    )
    price = traces(run, "equivariance/percent_of_loss").values()
    scale = 100.0 if all(fraction(t, 1.0) == 1.0 for t in price) else 1.0
    yield from _by_target(
        run,
        Plot(last_step=run.last_step, scale=scale, suffix=" %"),
        "equivariance/percent_of_loss",
        "Cost of the violation",
        "Share of the loss on moved samples, targets moved along, that averaging the predictions "
        "over the symmetry would take away.",
    )


def conservation_panels(run: Log) -> Iterator[Panel]:
    """Drift of the charges, its causes, and the identities behind their conservation."""
    found = drifts(run)
    yield from _drift(run, {family: _moved(t) for family, t in found.items()})
    yield from _forecast(run, found)
    for family, drift in found.items():
        if judged(drift.last) != "holds":
            yield from _causes(run, family)
    yield from charge_panels(run)
    yield from _by_target(
        run,
        Plot(last_step=run.last_step, log=True),
        "conservation/first_order",
        "First-order law of the training gradient",
        "Slope of the loss along the symmetry over the gradient's length, from the gradient that "
        "the optimizer was given; near its dotted floor nothing but a symmetric loss shapes it.",
    )
    yield from _by_target(
        run,
        Plot(last_step=run.last_step, log=True),
        "conservation/epsilon",
        "What epsilon leaves of the training gradient's law",
        "The same of approximate symmetries, less what the epsilon of the normalisations predicts: "
        "near its dotted floor nothing else shapes the gradient along them.",
    )
    for order, vector in (("zeroth", "loss"), ("first", "gradient"), ("second", "Hessian")):
        yield from _by_target(
            run,
            Plot(last_step=run.last_step, log=True),
            f"noether/{order}_order",
            f"{order.capitalize()}-order law",
            f"Residual of the identity that the symmetry imposes on the {vector}, on a "
            "logarithmic axis: near its dotted floor the symmetry is exact.",
        )
    yield from _by_target(
        run,
        Plot(last_step=run.last_step, log=True),
        "noether/epsilon",
        "What epsilon leaves unexplained",
        "First-order law of approximate symmetries less what the epsilon of the normalisations "
        "predicts: near its dotted floor nothing else breaks the symmetry.",
    )


def _drift(run: Log, found: dict[str, Trace]) -> Iterator[Panel]:
    plot = Plot(last_step=run.last_step, log=True, scale=100.0, suffix=" %")
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(found))]
    for (family, drift), colour in zip(found.items(), colours, strict=True):
        plot.line(drift, words(family), colour, judge=judged(drift.last) == "holds")
    plot.floors(list(found.values()), colours)
    plot.missing(run, [f"conservation/drift/{family}" for family in found])
    reading = (
        "Change of each family's charges since the start, relative to their size, on a "
        "logarithmic axis; gradient flow would keep it near the dotted floor."
    )
    if found:
        yield plot.panel("conservation-drift", "Drift of conserved charges", reading)


def _forecast(run: Log, found: dict[str, Trace]) -> Iterator[Panel]:
    """Measured drifts as broad pale lines, those of the closed form as thin ones."""
    plot = Plot(last_step=run.last_step, log=True, scale=100.0, suffix=" %")
    for i, (family, expected) in enumerate(traces(run, "conservation/forecast").items()):
        if family not in found:
            continue
        colour = PALETTE[i % len(PALETTE)]
        plot.line(_moved(found[family]), f"{words(family)}, measured", colour, width=6)
        plot.data[-1] |= {"opacity": 0.35, "mode": "lines"}
        key = replace(plot.keys.pop(), label=words(family))
        plot.line(_moved(expected), f"{words(family)}, predicted", colour, width=1.4)
        plot.keys.append(replace(key, traces=key.traces + plot.keys.pop().traces))
    if plot.data:
        reading = (
            "Drift of the charges since the start: broad pale lines are measured, thin lines are "
            "what SGD with its decay and momentum does to charges that the loss conserves."
        )
        yield plot.panel("forecast", "Drift by the closed form of SGD", reading)


def _moved(drift: Trace) -> Trace:
    """A drift without its first records that are zero because the start is the reference."""
    begin = next((i for i, r in enumerate(drift.records) if r.value), 0)
    return Trace(records=drift.records[begin:])


def _causes(run: Log, family: str) -> Iterator[Panel]:
    """Shares of the drift by cause; the budget of single steps where shares are missing."""
    shares = {c: trace(run, f"conservation/share_{c}/{family}") for c in CAUSES}
    terms = {c: trace(run, f"conservation/{c}/{family}") for c in CAUSES}
    title = f"What moved the {words(family)} charges"
    said = cause_words(law_held(run, family), law_undecided(run, family))
    if any(shares.values()):
        shown = {c: t for c, t in shares.items() if t and _size(t) > VISIBLE}
        plot = Plot(last_step=run.last_step, scale=100.0, suffix=" %")
        stacked = all(arrays(t)[1].min() > -VISIBLE for t in shown.values())
        reading = (
            "Causes of the drift since the start, each measured step standing for those just "
            "before it; together 100 %."
        )
        if not stacked:
            reading = f"{reading[:-1]}, negative against the drift."
    else:
        shown = {c: t for c, t in terms.items() if t and _size(t) > 0}
        plot, stacked = Plot(last_step=run.last_step), False
        reading = "Relative change of the charges in one step, by cause, along the step's drift."
    for cause, t in shown.items():
        colour = CAUSE_COLOURS[cause]
        plot.line(t, said[cause], colour, width=0 if stacked else 1.8)
        if stacked:
            area = {"stackgroup": "causes", "fillcolor": faded(colour, 0.8), "mode": "lines"}
            plot.data[-1] |= area
    if plot.data:
        yield plot.panel(f"causes-{family}", title, reading)


def _by_target(run: Log, plot: Plot, quantity: str, title: str, reading: str) -> Iterator[Panel]:
    """One line for every symmetry or family that the quantity was measured for."""
    found = traces(run, quantity)
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(found))]
    for (name, t), colour in zip(found.items(), colours, strict=True):
        label = symmetry(name) if quantity.startswith("equivariance/") else words(name)
        plot.line(t, label, colour, judge=True)
    plot.floors(list(found.values()), colours)
    plot.missing(run, [f"{quantity}/{name}" for name in found])
    if found:
        yield plot.panel(quantity.replace("/", "-"), title, reading)


def _size(t: Trace) -> float:
    return float(np.abs(arrays(t)[1]).max())
