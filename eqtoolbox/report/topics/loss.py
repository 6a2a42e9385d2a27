"""Does the loss fall: how it moved between fifths of the run, with its running median."""

import math
from collections.abc import Iterator

import numpy as np

from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.drawing import PALETTE, WIDE, faded, plain, thinned
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.finding import Evidence, Finding, Level
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.trace import arrays, trace
from eqtoolbox.report.words import number

FIFTH = 5  # the loss is compared between fifths of the run
STANDARD_ERRORS = 3.0  # beyond this a difference of medians is no accident of the batches
LOST = 0.1  # share of what the loss had fallen: a smaller rise is no matter
NOISY = 100  # records from which a running median is drawn over the loss


def loss_trend(run: Log) -> Iterator[Finding]:
    """How the training loss moved between fifths of the run."""
    loss = trace(run, "training/loss")
    if loss is None or loss.unanswered or len(loss.records) < 3 * FIFTH:
        return
    values = loss.values
    ratios = np.log(values) if (values > 0).all() else values  # a steep fall is no scatter
    fifths, compared = np.array_split(values, FIFTH), np.array_split(ratios, FIFTH)
    first, previous, last = (float(np.median(fifths[i])) for i in (0, -2, -1))
    start, before, end = (float(np.median(compared[i])) for i in (0, -2, -1))
    steps = [loss.records[len(fifths[0]) - 1].step, loss.last.step]
    evidence = tuple(
        Evidence(name=loss.name, step=step, value=value, points=len(part))
        for step, value, part in zip(steps, (first, last), (fifths[0], fifths[-1]), strict=True)
    )
    moved = f"from {number(first)} in the first fifth of the run to {number(last)} in the last"
    if end - before > _uncertainty(compared[-2], compared[-1]):
        rising = f"from {number(previous)} to {number(last)} between the last two fifths"
        text = f"The training loss is rising: {rising} of the run."
        gained = first - min(float(np.median(part)) for part in fifths)
        level: Level = "warning" if last - previous > LOST * gained else "note"
        yield Finding(level=level, text=text, evidence=evidence, id="loss-rising")
    elif start - end > _uncertainty(compared[0], compared[-1]):
        falls = before - end > _uncertainty(compared[-2], compared[-1])
        tail = ", and is still falling" if falls else "; no further fall shows in the last fifth"
        text = f"The training loss fell {moved}{tail}."
        yield Finding(level="good", text=text, evidence=evidence)
    else:
        text = f"The training loss shows no fall beyond its own scatter ({moved})."
        yield Finding(level="note", text=text, evidence=evidence)


def _uncertainty(*parts: np.ndarray) -> float:
    """Three standard errors of a difference of medians, from the scatter inside each part."""
    squares = 0.0
    for part in parts:
        scatter = 1.4826 * float(np.median(np.abs(part - np.median(part))))  # normal: MAD to sd
        squares += (1.2533 * scatter) ** 2 / len(part)
    return STANDARD_ERRORS * math.sqrt(squares)


def training_panel(run: Log) -> Panel | None:
    """The training loss with its running median."""
    loss = trace(run, "training/loss")
    if loss is None:
        return None
    steps, values = arrays(loss)
    known, losses = Signs(run).losses
    every = bool(np.isfinite(losses).sum() > len(values))  # losses between the measured steps, too
    if every:
        steps, values = known[np.isfinite(losses)], losses[np.isfinite(losses)]
    log = bool(values.min() > 0 and values.max() > WIDE * values.min())
    plot = Plot(last_step=run.last_step, log=log)
    plot.line(loss, "loss", PALETTE[0])
    if every:
        kept = thinned(values)
        plot.data[-1] |= {
            "x": plain(steps[kept]), "y": plain(values[kept]), "text": None, "mode": "lines",
            "hovertemplate": "%{y:.3~g}",
        }  # fmt: skip
    what = "every step (of many, few that stand for them)" if every else "each recorded batch"
    reading = f"Loss of {what}, {'logarithmic' if log else 'linear'} axis."
    if len(values) > NOISY:
        plot.data[-1]["line"] = {"color": faded(PALETTE[0], 0.35), "width": 1}
        kept, window = thinned(values), max(5, len(values) // 100)
        near = [values[max(0, i - window) : i + window + 1] for i in kept]
        median = np.array([np.median(part) for part in near])
        bold = {"line": {"color": PALETTE[0], "width": 2}, "name": "median", "text": None}
        heights = {"x": plain(steps[kept]), "y": plain(median), "hovertemplate": "%{y:.3~g}"}
        plot.data.append(plot.data[-1] | bold | heights)
        reading = f"{reading[:-1]}; the bold line is its running median."
    plot.missing(run, ["training/loss"])
    plot.keys.clear()
    return plot.panel("loss", "Training loss", reading)


TOPIC = Topic(
    question="Does the loss fall?",
    slug="loss",
    explanation="Medians of fifths of the run, compared by their scatter; its chart stands on top "
    "of the page.",
    remedy=(
        "lower the learning rate, or let it decay towards the end",
        "go back to the checkpoint before the rise",
    ),
    rules=(loss_trend,),
)
