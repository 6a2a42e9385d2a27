"""Leap: a loss that one step throws from a calm run to far above its start."""

from dataclasses import dataclass

import numpy as np

from eqtoolbox.report.diagnosis.signs import LEARNED, Signs

OUTLIER = 10.0  # robust standard deviations
BEFORE = 10  # losses that a leap is compared with
FAR = 3.0  # times what the run began with


@dataclass(frozen=True, kw_only=True)
class Leap:
    """Where the loss left the losses before it."""

    step: int
    loss: float
    before: float  # median of the losses before it


def leap(signs: Signs) -> Leap | None:
    """The first loss far above the start of a run that had learned until then; None without one."""
    steps, values = signs.losses
    start = signs.level[0]
    if len(values) < 3 * BEFORE or not np.isfinite(values).all():
        return None
    top = max(abs(start), signs.constant_loss or 0.0)
    for at in np.flatnonzero(values - start > (FAR - 1) * top):
        if at < max(BEFORE, len(values) // 10):
            return None
        near = values[at - BEFORE : at]
        middle = float(np.median(near))
        sigma = 1.4826 * float(np.median(np.abs(near - middle)))
        if start - middle < (1 - LEARNED) * abs(start) or values[at] - middle < OUTLIER * sigma:
            return None
        return Leap(step=int(steps[at]), loss=float(values[at]), before=middle)
    return None
