"""Symptoms of the batches: the scales of inputs and targets, and the order of the samples."""

import math

import numpy as np

from eqtoolbox.report.diagnosis.disease import Symptom
from eqtoolbox.report.diagnosis.signal import dead
from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.diagnosis.steps import ABOVE, MOVED, OFTEN, RESTS, each_step, rises
from eqtoolbox.report.finding import Level
from eqtoolbox.report.words import number, percent

APART = 1e3  # largest over smallest spread of the columns
LARGE = 20.0  # root mean square of inputs or targets; standardised ones have 1
SMALL = 0.2  # norm of a sample that the first layer is given; one standardised number has 1
FLAT = 0.05  # spread of the first outputs relative to their size: of tiny inputs they are biases
THROWN_OFF = 3.0  # times the best constant output's: a loss at the start that the inputs made
SEEN = 3  # batches whose targets must be alike
AGREE = 0.3  # cosine of the gradients of two halves of a batch: more is a signal
FEW = 8  # samples of a batch, and SOME batches, from which their variances say anything
SOME = 6
ROUNDED = 1e-6  # of the targets' size: smaller differences are rounding
ORDERED = 1.0  # variance of the batches' means over that within batches; by chance 1 / samples


def unscaled(signs: Signs) -> Symptom | None:
    """Columns of the input that differ by orders of magnitude, large numbers, or tiny ones."""
    ratio = signs.now("vital/input_scale")
    rms = signs.told("vital/input_scale", "rms")
    if ratio is None or not np.isfinite(rms).any():
        return None
    size, names = float(np.nanmedian(rms)), ("vital/input_scale",)
    level: Level | None = "alarm" if signs.idle else None
    if ratio > APART:
        text = (
            f"The inputs are not scaled: the spread of their columns differs by a factor of "
            f"{number(ratio, 2)}, so that no step fits all of them."
        )
        return Symptom(text=text, names=names, where="the data", level=level)
    if size > LARGE:
        text = f"The inputs are not scaled: their size is {number(size, 2)} where 1 is usual."
        level = "note" if signs.state == "learned" and not _spoiled(signs) else level
        return Symptom(text=text, names=names, where="the data", level=level)
    return _tiny(signs, size)


def _spoiled(signs: Signs) -> bool:
    """Whether large inputs left marks in a run that learned: dead units, or a loss that rests."""
    guess, (start, end) = signs.constant_loss, signs.level
    thrown_off = guess is not None and start > THROWN_OFF * guess
    return dead(signs) is not None or (thrown_off and end > RESTS * signs.best_idle)


def _tiny(signs: Signs, size: float) -> Symptom | None:
    """Inputs beside which biases are all that counts, in a run that learned little or nothing.

    Rows of a sparse table, as one-hot ones, have small entries, but not a small norm.
    """
    columns = signs.facts("vital/input_scale").count("columns") or 0
    norm, spread = size * math.sqrt(columns), signs.curve("vital/output_spread")
    if not 0 < norm < SMALL or spread is None or spread.records[0].value > FLAT:
        return None
    if signs.state not in ("stuck", "little") or rises(signs) > OFTEN / 2:
        return None
    text = (
        f"The inputs are not scaled: their size is {number(size, 2)} where 1 is usual, so that the "
        f"biases of the first layer outweigh them, and the loss {signs.course}."
    )
    remedy = (
        "standardise each column by mean and standard deviation of the training data",
        "look for what scales them twice, such as a second division by 255",
    )
    level: Level | None = "alarm" if signs.idle else None
    names = ("vital/input_scale", "vital/output_spread")
    return Symptom(text=text, names=names, where="the data", level=level, remedy=remedy)


def unscaled_targets(signs: Signs) -> Symptom | None:
    """Large targets of a squared error or Huber's, which the outputs have yet to reach.

    At their mean, with no signal left, it is not their scale that keeps the loss up. Where steps
    overshoot, their length may be the cause, and the scale is a note.
    """
    name, guess, halves = "vital/constant_loss", signs.constant_loss, signs.now("vital/halves")
    kind, size = signs.facts(name).text("kind"), signs.told(name, "size")
    size = size[np.isfinite(size)]
    if kind.endswith("entropy") or not size.size or np.median(size) < LARGE or not guess:
        return None
    if signs.state not in ("stuck", "little", "grew"):
        return None
    above = signs.level[1] / guess
    if above < ABOVE and (halves is None or halves < AGREE):
        return None
    text = (
        f"The targets are not scaled: their size is {number(float(np.median(size)), 2)} where 1 is "
        f"usual, and the loss is still {number(above, 2)}x that of the best constant output: the "
        "outputs have yet to grow to the targets."
    )
    level: Level | None = "note" if rises(signs) > OFTEN / 2 else None
    return Symptom(text=text, names=("vital/losses", name), where="the data", level=level)


def constant_target(signs: Signs) -> Symptom | None:
    """Labels of a batch that are the same for all of its samples, in every batch."""
    name = "vital/constant_loss"
    rows = signs.run.rows(name) if name in signs.run else ()
    if len(rows) < SEEN or not all(row.facts.flag("alike") for row in rows):
        return None
    text = "The targets are constant: all samples of all measured batches have the same, so that "
    text += "a constant output fits them, and a loss that falls has learned nothing of the inputs."
    return Symptom(text=text, names=(name, "vital/losses"), where="the data")


def ordered(signs: Signs) -> Symptom | None:
    """Batches that differ in their targets far more than their samples do, and undo each other."""
    share = _between(signs)
    if share is None or signs.state not in ("stuck", "little", "grew"):
        return None
    each = each_step(signs)
    if not -each * signs.length >= MOVED or rises(signs) > OFTEN / 2:
        return None
    start, end = signs.level
    text = (
        f"The data are in order: {percent(share)} of the variance of the targets is between "
        f"batches, not within them. Each step lowers the loss by {percent(-each)} on its batch, "
        f"and the next batch undoes it: the loss was {number(start)} and is {number(end)}."
    )
    names = ("vital/own_batch", "vital/constant_loss", "vital/halves")
    return Symptom(text=text, names=names, where="the data")


def _between(signs: Signs) -> float | None:
    """Share of the targets' variance that is between batches, where it is more than chance.

    Targets that the loss makes itself, as ones for what is to look real, have no order.
    """
    name, facts = "vital/constant_loss", ("mean", "variance", "samples", "size")
    if name not in signs.run:
        return None
    mean, variance, samples, size = (signs.told(name, fact) for fact in facts)
    brought = np.array([row.facts.flag("alike") for row in signs.run.rows(name)])
    known = np.isfinite(mean) & (samples >= FEW) & ((variance > 0) | brought)
    if known.sum() < SOME:
        return None
    between, within = float(mean[known].var(ddof=1)), float(variance[known].mean())
    rounding = (ROUNDED * float(np.median(size[known]))) ** 2
    return between / (between + within) if between > max(ORDERED * within, rounding) else None
