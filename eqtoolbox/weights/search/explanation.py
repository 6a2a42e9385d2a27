"""Explanation: whether the epsilons of normalisations account for what an approximate law lacks."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eqtoolbox.weights.epsilon import at_factors, log_slopes, moved_along, observed, prediction
from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search.moves import move, moved
from eqtoolbox.weights.search.point import Point
from eqtoolbox.weights.search.verification import Loss, limit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """An approximate symmetry with the element it was judged on, and its first-order law there."""

    symmetry: ContinuousSymmetry
    coefficients: Tensor  # c
    slope: float = 0.0  # g . K_c, less <u, rho> for an equivariance
    scale: float = 0.0  # that it counts relative to; 0: of a large model order 0 alone is asked


def explained(
    function: Loss,
    point: Point,
    value: Tensor,
    trials: Sequence[Trial],
    along: Tensor | float = 1.0,
    amounts: Callable[[], Sequence[Tensor]] | None = None,
) -> list[ContinuousSymmetry]:
    """Each with `epsilon`, the residual that epsilon predicts, at the same element and orders.

    One whose residual is not the predicted one, to rounding, is broken by something else and says
    so in its status. Where the computation shows no epsilon (kernels that are not torch's), or
    cannot be differentiated by it, a symmetry stays as it is, with `epsilon` NaN.

    Args:
        function: loss, or outputs for equivariances.
        point: parameters.
        value: of the function there.
        trials: what to ask of.
        along: u of the slopes <u, J K>.
        amounts: what each epsilon is added to there, where that is known.
    """
    if not trials:
        return []
    try:
        with point.scope():
            scalar = lambda params: (along * function(params)).sum()
            there = moved(point, ())  # parameters made anew each time
            ask = any(t.scale > 0 for t in trials)
            base: Sequence[Tensor]
            slopes: Sequence[Tensor] = ()
            if ask:
                base, slopes = log_slopes(scalar, there)
            else:
                base = amounts() if amounts is not None else observed(scalar, there)
            if base:
                return [_explained(function, point, value, base, slopes, t) for t in trials]
    except RuntimeError as error:  # formulas in place of kernels may not run where these do
        log.info("symmetries: epsilon could not be asked: %s", error)
    return [trial.symmetry for trial in trials]


def _explained(
    function: Loss,
    point: Point,
    value: Tensor,
    base: Sequence[Tensor],
    slopes: Sequence[Tensor],
    trial: Trial,
) -> ContinuousSymmetry:
    symmetry = trial.symmetry

    def turned(y: Tensor) -> Tensor:
        return symmetry.transform_outputs(y, trial.coefficients)

    there = move(symmetry, symmetry.flow(trial.coefficients))
    try:
        along, factors = moved_along(function, moved(point, [there]), base)
    except LookupError:
        return symmetry
    size = float(value.norm().clamp_min(1e-300))
    left = float((along - turned(value)).norm()) / size
    predicted = symmetry.residual  # where nothing is left, that is what epsilons account for
    if trial.scale > 0:
        with torch.no_grad():
            instead = at_factors(function, moved(point, ()), [1 / f for f in factors])
        predicted = float((turned(instead) - turned(value)).norm()) / size
        p = float(prediction(slopes, [f.log() for f in factors]))
        predicted = max(predicted, abs(p) / trial.scale)
        left = max(left, abs(trial.slope - p) / trial.scale)
    status = symmetry.status if left <= limit(value.dtype) else "broken"
    return replace(symmetry, epsilon=predicted, status=status)
