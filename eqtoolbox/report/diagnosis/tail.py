"""Tail: whether a loss lies beyond the largest that a run has, which are far apart by nature."""

import math

import numpy as np
from numpy.typing import NDArray

NEAR = 10  # losses on either side that a loss is compared with
SEVERAL = 10  # losses at most that stand out together, as of one sample in every epoch
BEYOND = 12  # spacings below these that tell how far apart the largest are
APART = 2.0  # times the next smaller: a smaller gap is none
CHANCE = 5e-4  # by which one gap may be so wide
FLOOR = 1e-3  # of the largest running median: what a loss is relative to is no less


def stands_out(values: NDArray[np.float64], at: int) -> bool:
    """Whether a loss is apart from the tail of all losses, each relative to its running median.

    Spacings of the largest of n numbers with an exponential tail, the i-th times i, are
    independent and alike (Rényi 1953); logarithms of losses have no heavier one. A gap is judged
    by the mean of those below it. What follows the loss is left out: it may be thrown by it.

    Example:
        >>> calm = 1 + 0.1 * np.random.default_rng(0).random(100)
        >>> calm[50] = 5.0
        >>> stands_out(calm, 50), stands_out(calm, 51)
        (True, False)
    """
    reach = np.minimum(NEAR, np.minimum(np.arange(len(values)), np.arange(len(values))[::-1]))
    near = [values[i - few : i + few + 1] for i, few in enumerate(reach)]  # a slope lifts none
    middle = np.array([np.median(part) for part in near])
    size = np.maximum(np.abs(middle), FLOOR * np.abs(middle).max())
    excess = np.log1p(np.maximum(values - middle, 0) / np.maximum(size, 1e-300))
    others = np.delete(excess[len(values) // 10 :], _after(values, at))
    top = np.sort(np.append(others, excess[at]))[::-1]
    spacings = np.arange(1, len(top)) * -np.diff(top)
    rank = int(np.searchsorted(-top, -excess[at], "right"))
    for place in range(max(rank, 1), min(SEVERAL, len(spacings)) + 1):
        below = spacings[place : place + BEYOND]
        below = below[below > 0]  # those at or under their median have no excess
        count = max(len(below), 1)
        wide = count * (CHANCE ** (-1 / count) - 1) * float(below.sum()) / count
        if spacings[place - 1] > max(wide, place * math.log(APART)):
            return True
    return False


def _after(values: NDArray[np.float64], at: int) -> NDArray[np.int64]:
    """Places, among those that are no start, of a loss and of those after it."""
    found = np.arange(at, min(at + NEAR + 1, len(values))) - len(values) // 10
    return found[found >= 0]
