"""Does the loss fall: how it moved between fifths of the run, with its running median."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.drawing import PALETTE, faded, plain, thinned, wide
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.finding import Evidence, Finding, Level
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.trace import Curve, arrays, trace
from eqtoolbox.report.words import number

FIFTH = 5  # the loss is compared between fifths of the run
STANDARD_ERRORS = 3.0  # beyond this a difference of medians is no accident of the batches
BLOCKS = 8  # medians of a fifth's losses in a row, so that neighbours that are alike count once
CHANCE = 5e-4  # by which losses that do not rise may seem to
LOST = 0.1  # share of what the loss had fallen: a smaller rise is no matter
NEARLY = 0.9  # share of steps
HARDER = (
    "see whether the batches have become harder, as in a curriculum or in data that drift: then "
    "judge it by a loss on data that stay",
    "otherwise lower the learning rate, or let it decay towards the end",
)
NOISY = 100  # records from which a running median is drawn over the loss


def loss_trend(run: Log) -> Iterator[Finding]:
    """How the training loss moved between fifths of the run."""
    loss = trace(run, "training/loss")
    if loss is None or loss.unanswered or len(loss.records) < 3 * FIFTH:
        return
    values = loss.values
    ratios = np.log(values) if (values > 0).all() else values  # a steep fall is no scatter
    fifths, compared = np.array_split(values, FIFTH), np.array_split(ratios, FIFTH)
    first, last = (float(np.median(fifths[i])) for i in (0, -1))
    start, before, end = (float(np.median(compared[i])) for i in (0, -2, -1))
    steps = [loss.records[len(fifths[0]) - 1].step, loss.last.step]
    evidence = tuple(
        Evidence(name=loss.name, step=step, value=value, points=len(part))
        for step, value, part in zip(steps, (first, last), (fifths[0], fifths[-1]), strict=True)
    )
    moved = f"from {number(first)} in the first fifth of the run to {number(last)} in the last"
    if Signs(run).option("maximize"):
        text = f"The optimizer maximises its loss, which went {moved}."
        yield Finding(level="note", text=text, evidence=evidence)
    elif (rise := _rise(run)) is not None:
        previous, latest = rise
        rising = f"from {number(previous)} to {number(latest)} between the last two fifths"
        text = f"The training loss is rising: {rising} of the run."
        remedy: tuple[str, ...] = ()
        if _each_falls(run, loss.steps[-2 * len(fifths[-1])]):
            text = f"{text[:-1]}, though each step lowers the loss of its own batch."
            remedy = HARDER
        gained = first - min(float(np.median(part)) for part in fifths)
        grave = latest - previous > LOST * gained and Signs(run).state != "unknown"
        level: Level = "warning" if grave else "note"
        yield Finding(level=level, text=text, evidence=evidence, id="loss-rising", remedy=remedy)
    elif start - end > _uncertainty(compared[0], compared[-1]) or _above(fifths[0], fifths[-1]):
        falls = before - end > _uncertainty(compared[-2], compared[-1])
        tail = ", and is still falling" if falls else "; no further fall shows in the last fifth"
        text = f"The training loss fell {moved}{tail}."
        yield Finding(level="good", text=text, evidence=evidence)
    else:
        text = f"The training loss shows no fall beyond its own scatter ({moved})."
        yield Finding(level="note", text=text, evidence=evidence)


def _rise(run: Log) -> tuple[float, float] | None:
    """Medians of the last two fifths of all losses, where the last lies above; None elsewhere.

    By Student's test of two means, over medians of blocks.
    """
    values = Signs(run).losses[1]
    values = values[np.isfinite(values)]
    previous, last = np.array_split(values, FIFTH)[-2:]
    if len(previous) < 2 or len(last) < 2:
        return None
    ratios = np.log(values) if (values > 0).all() else values
    before, after = (_blocks(part) for part in np.array_split(ratios, FIFTH)[-2:])
    free = len(before) + len(after) - 2
    variance = sum(float(np.square(x - x.mean()).sum()) for x in (before, after)) / free
    error = math.sqrt(variance * (1 / len(before) + 1 / len(after)))
    gap = float(after.mean() - before.mean())
    from scipy.special import stdtr  # which takes a while to load

    if gap <= 0 or (error > 0 and stdtr(free, -gap / error) > CHANCE):
        return None
    return float(np.median(previous)), float(np.median(last))


def _blocks(values: np.ndarray) -> np.ndarray:
    return np.array([np.median(x) for x in np.array_split(values, min(BLOCKS, len(values)))])


def _each_falls(run: Log, since: int) -> bool:
    """Whether nearly all measured steps from here on lower the loss of their own batch."""
    own = trace(run, "vital/own_batch")
    late = np.zeros(0) if own is None else own.values[own.steps >= since]
    return len(late) >= 3 and float(np.mean(late < 0)) >= NEARLY


def _above(first: np.ndarray, last: np.ndarray) -> bool:
    """Whether the first lie above the last, by three standard errors of the ranks' sum.

    A fall within the first fifth is no scatter of it (Mann & Whitney 1947).
    """
    lower = np.sort(last)
    sides = (np.searchsorted(lower, first, "left"), np.searchsorted(lower, first, "right"))
    above = float(np.mean(sides)) / len(last)  # of a pair that is equal a half
    error = math.sqrt((len(first) + len(last) + 1) / (12 * len(first) * len(last)))
    return above - 0.5 > STANDARD_ERRORS * error


def _uncertainty(*parts: np.ndarray) -> float:
    """Three standard errors of a difference of medians, from the scatter inside each part."""
    squares = 0.0
    for part in parts:
        scatter = 1.4826 * float(np.median(np.abs(part - np.median(part))))  # normal: MAD to sd
        squares += (1.2533 * scatter) ** 2 / len(part)
    return STANDARD_ERRORS * math.sqrt(squares)


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The training losses of a run: of every step where they are known, else as recorded."""

    curve: Curve
    every: bool  # losses between the measured steps, too
    steps: NDArray[np.int64]  # (n,)
    values: NDArray[np.float64]  # (n,), finite

    @classmethod
    def of(cls, run: Log) -> "Losses | None":
        curve = trace(run, "training/loss")
        if curve is None:
            return None
        steps, values = arrays(curve)
        known, losses = Signs(run).losses
        every = bool(np.isfinite(losses).sum() > len(values))
        if every:
            steps, values = known[np.isfinite(losses)], losses[np.isfinite(losses)]
        return cls(curve=curve, every=every, steps=steps, values=values)

    @property
    def noisy(self) -> bool:
        """Whether there are enough for a running median."""
        return len(self.values) > NOISY

    def draw(self, plot: Plot, label: str, colour: str, dash: str = "solid") -> None:
        """Add them to a plot, faint behind their running median where they are noisy."""
        plot.line(self.curve, label, colour, dash=dash)
        kept = thinned(self.values, plot.points)
        if self.every:
            plot.data[-1] |= {
                "x": plain(self.steps[kept]), "y": plain(self.values[kept]), "text": None,
                "mode": "lines", "hovertemplate": "%{y:.3~g}",
            }  # fmt: skip
        if not self.noisy:
            return
        window = max(5, len(self.values) // 100)
        near = [self.values[max(0, i - window) : i + window + 1] for i in kept]
        median = plain(np.array([np.median(part) for part in near]))
        plot.data[-1]["line"] = {"color": faded(colour, 0.35), "width": 1}
        name = "median" if label == "loss" else f"{plot.data[-1]['name']}, median"
        bold = {"line": {"color": colour, "width": 2, "dash": dash}, "name": name, "text": None}
        heights = {"x": plain(self.steps[kept]), "y": median, "hovertemplate": "%{y:.3~g}"}
        plot.data.append(plot.data[-1] | bold | heights)
        both = (*plot.keys[-1].traces, len(plot.data) - 1)
        plot.keys[-1] = replace(plot.keys[-1], traces=both)


def training_panel(run: Log) -> Panel | None:
    """The training loss with its running median."""
    losses = Losses.of(run)
    if losses is None:
        return None
    plot = Plot(last_step=run.last_step, log=wide(losses.values))
    losses.draw(plot, "loss", PALETTE[0])
    every = "every step (of many, few that stand for them)" if losses.every else ""
    what = every or "each recorded batch"
    reading = f"Loss of {what}, {'logarithmic' if plot.log else 'linear'} axis."
    if losses.noisy:
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
