"""Is the signal healthy: gradients, steps, activations and noise, layer by layer."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from eqtoolbox.record.record import Record
from eqtoolbox.report.drawing import GREY, PALETTE
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.trace import Curve, trace

LINES = 5  # layers that one panel draws, evenly over the depth
CLIPPED = 0.99  # share of the gradient that is left: less of it is drawn


def vital_panels(run: Log) -> Iterator[Panel]:
    """What was heard at measured steps."""
    yield from _gradient(run)
    yield from _layers(
        run,
        "vital/update_ratio",
        "ratios",
        "How far a step moves each layer",
        "Length of the update beside that of the weights, on a logarithmic axis: about 0.001 is "
        "usual, 1e-6 hardly learns, 0.1 forgets.",
    )
    yield from _layers(
        run,
        "vital/activation_scale",
        "scales",
        "How large each layer's output is",
        "Root mean square before the activation, on a logarithmic axis, from the first layer to "
        "the last: a steady factor from one to the next explodes or vanishes with depth.",
    )
    yield from _silence(run)
    yield from _noise(run)


def _gradient(run: Log) -> Iterator[Panel]:
    norm = trace(run, "vital/gradient_norm")
    if norm is None:
        return
    plot = Plot(last_step=run.last_step, log=True)
    plot.line(norm, "of the loss", PALETTE[0])
    used = _fact(norm, "used")
    if used is not None and (used.values < CLIPPED * norm.values[-len(used.values) :]).any():
        plot.line(used, "as the optimizer used it", PALETTE[1])
    reading = "On a logarithmic axis; what the optimizer used is less where gradients are clipped."
    yield plot.panel("vital-gradient", "Length of the gradient", reading)
    update = trace(run, "vital/update_norm")
    if update is not None:
        plot = Plot(last_step=run.last_step, log=True)
        plot.line(update, "of all parameters", PALETTE[0])
        reading = "What the optimizer made of the gradient, on a logarithmic axis."
        yield plot.panel("vital-update", "Length of the step", reading)


def _layers(run: Log, name: str, fact: str, title: str, reading: str) -> Iterator[Panel]:
    """One line a layer, of numbers that stand in facts beside `layers`."""
    whole = trace(run, name)
    layers = whole.last.facts.texts("layers") if whole is not None else ()
    if whole is None or not layers:
        return
    plot = Plot(last_step=run.last_step, log=True)
    count = min(LINES, len(layers))
    for i, place in enumerate(np.linspace(0, len(layers) - 1, count).round().astype(int)):
        layer, rows = layers[place], []
        for row in whole.records:
            numbers = dict(zip(row.facts.texts("layers"), row.facts.numbers(fact), strict=False))
            if layer in numbers:
                rows.append(_valued(row, numbers[layer]))
        plot.line(Curve(records=rows), layer.removesuffix(".weight"), PALETTE[i % len(PALETTE)])
    if len(layers) > count:
        reading += f" {count} of {len(layers)} layers, evenly over the depth."
    yield plot.panel(name.replace("/", "-"), title, reading)


def _silence(run: Log) -> Iterator[Panel]:
    plot = Plot(last_step=run.last_step, scale=100.0, suffix=" %")
    drawn = False
    for i, (name, label) in enumerate((("silent", "silent units"), ("saturated", "saturated"))):
        share = trace(run, f"vital/{name}")
        if share is not None and share.values.any():
            plot.line(share, label, PALETTE[i])
            drawn = True
    if drawn:
        reading = "Of the worst layer: units that gave nothing on the last five batches, and "
        reading += "activations in the flat ends of a tanh or sigmoid."
        yield plot.panel("vital-silent", "Units that pass nothing on", reading)


def _noise(run: Log) -> Iterator[Panel]:
    noise = trace(run, "vital/noise_scale")
    if noise is None:
        return
    plot = Plot(last_step=run.last_step, log=True)
    plot.line(noise, "noise scale", PALETTE[0])
    batch = _fact(noise, "batch")
    if batch is not None:
        plot.line(batch, "batch", GREY, width=1.2)
    reading = (
        "The batch at which noise and signal of the gradient are equal, in samples, on a "
        "logarithmic axis: a batch far above it wastes samples, one far below gains by growing."
    )
    yield plot.panel("vital-noise", "Gradient noise scale", reading)


def _fact(curve: Curve, fact: str) -> Curve | None:
    """A number that rows say beside their values, as a curve."""
    told = [(row, row.facts.number(fact)) for row in curve.records]
    rows = [_valued(row, value) for row, value in told if value is not None]
    return Curve(records=rows) if rows else None


def _valued(row: Record, value: float) -> Record:
    return replace(row, value=value, stderr=None, floor=None)


TOPIC = Topic(
    question="Is the signal healthy?",
    slug="health",
    explanation="Vital signs of measured steps: gradients, updates and activations by layer.",
    panels=(vital_panels,),
)
