"""Explanation: whether the epsilons of normalisations account for what an approximate law lacks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eqtoolbox.symmetry.epsilon import at_factors, log_slopes, moved_along, observed, prediction
from eqtoolbox.symmetry.parameter import ContinuousSymmetry
from eqtoolbox.symmetry.search.point import Point
from eqtoolbox.symmetry.search.verification import Loss, limit, move, moved


@dataclass(frozen=True)
class Trial:
    """An approximate symmetry with the element it was judged on, and its first-order law there."""

    symmetry: ContinuousSymmetry
    coefficients: Tensor  # c
    slope: float  # g . K_c
    scale: float  # |g| |K_c| of the parameters moved


def explained(
    loss: Loss, point: Point, value: Tensor, trials: Sequence[Trial]
) -> list[ContinuousSymmetry]:
    """Each with `epsilon`, the residual that epsilon predicts, at the same element and orders.

    One whose residual is not the predicted one, to rounding, is broken by something else and says
    so in its status. Where the computation shows no epsilon (kernels that are not torch's), a
    symmetry stays as it is, with `epsilon` NaN.
    """
    if not trials:
        return []
    base = observed(loss, moved(point, ()))  # parameters made anew each time, not kept
    if not base:
        return [trial.symmetry for trial in trials]
    slopes = log_slopes(loss, moved(point, ()), base)
    return [_explained(loss, point, value, base, slopes, trial) for trial in trials]


def _explained(
    loss: Loss,
    point: Point,
    value: Tensor,
    base: Sequence[Tensor],
    slopes: Sequence[Tensor],
    trial: Trial,
) -> ContinuousSymmetry:
    symmetry = trial.symmetry
    there = move(symmetry, symmetry.flow(trial.coefficients))
    try:
        along, factors = moved_along(loss, moved(point, [there]), base)
    except LookupError:
        return symmetry
    with torch.no_grad():
        instead = at_factors(loss, moved(point, ()), [1 / f for f in factors])
    size = float(value.abs().clamp_min(1e-300))
    p = float(prediction(slopes, [f.log() for f in factors]))
    scale = max(trial.scale, 1e-300)
    predicted = max(abs(float(instead - value)) / size, abs(p) / scale)
    left = max(abs(float(along - value)) / size, abs(trial.slope - p) / scale)
    status = symmetry.status if left <= limit(value.dtype) else "broken"
    return replace(symmetry, epsilon=predicted, status=status)
