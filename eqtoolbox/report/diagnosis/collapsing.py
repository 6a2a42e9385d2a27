"""Symptoms of a collapse: outputs alike for all inputs, with which the loss is content."""

import numpy as np

from eqtoolbox.report.diagnosis.disease import Symptom
from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.trace import RECENT, Curve
from eqtoolbox.report.words import number

COLLAPSED = 0.1  # spread of the outputs, where the loss is content with them
VANISHED = 0.1  # of what the spread was at first


def collapsed(signs: Signs) -> Symptom | None:
    """Outputs that are the same for all inputs while the loss is content.

    Where lengths do not count, only directions may tell. Against labels no constant output is
    content, and why they are constant is another question.
    """
    directions = signs.curve("vital/direction_spread")
    if signs.constant_loss is not None:
        return None
    return _at_a_point(signs) if directions is None else _in_one_direction(signs, directions)


def _at_a_point(signs: Signs) -> Symptom | None:
    """Outputs that differ by little of their size."""
    spread = signs.curve("vital/output_spread")
    if signs.state != "learned" or spread is None:
        return None
    differ = signs.told(spread.name, "spread")  # in the outputs' own unit: an offset shrinks none
    if spread.now > COLLAPSED or spread.now > spread.records[0].value * VANISHED:
        return None
    if float(np.median(differ[-RECENT:])) > differ[0] * VANISHED:
        return None
    text = (
        f"The representation collapsed: outputs differ by {number(spread.now, 2)} of their size "
        "from input to input, though the loss is near its minimum."
    )
    return Symptom(text=text, names=(spread.name,), where="the output of the model")


def _in_one_direction(signs: Signs, spread: Curve) -> Symptom | None:
    """Outputs that the loss divides by their length, and that point in one direction.

    Pairs have a cosine of more than 0.9 in the mean, and spread ten times less than at the start,
    and than the outputs of a teacher: where that is a narrow cone, a student has learned it. As a
    cosine is near its best from the start where outputs are nearly parallel, the loss need not have
    fallen by much, but it must have fallen.
    """
    start, end = signs.level
    if signs.state not in ("learned", "little", "unknown") or not end < start:
        return None
    others = signs.told(spread.name, "other")[:1]
    first = float(np.nanmin([spread.records[0].value, *others]))
    if spread.now > COLLAPSED or spread.now > first * VANISHED:
        return None
    text = (
        f"The representation collapsed: outputs point in one direction (cosine of pairs "
        f"{number(1 - spread.now, 3)} in the mean, {number(1 - first, 2)} at first), and the loss, "
        f"which does not see their length, is content: {number(start)} at the start, "
        f"{number(end)} at the end."
    )
    names = (spread.name, "vital/losses")
    return Symptom(text=text, names=names, where="the output of the model")
