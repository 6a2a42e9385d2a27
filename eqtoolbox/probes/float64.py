"""The gradient in float64, which tells rounding from what is there, if a loss can be had in it."""

import torch

from eqtoolbox.linalg.vectors import norm
from eqtoolbox.replay.gradient import replayed_gradient
from eqtoolbox.replay.objective import Objective, Parameters

SAME = 100.0  # roundings between losses in two precisions of one and the same computation
ALIKE = 0.05  # between their gradients, where the loss is as small as rounding of numbers of size 1


def rounding(objective: Objective, params: Parameters, gradient: Parameters) -> Parameters:
    """g - g in float64: all that rounding does to first-order laws; empty where not to be had."""
    exact = in_float64(objective, params, gradient)
    return {n: g.double() - exact.pop(n) for n, g in gradient.items() if n in exact}


def rounded_share(objective: Objective, params: Parameters, gradient: Parameters) -> float:
    """|g - g in float64| / |g|; 0 where there is no float64."""
    apart = rounding(objective, params, gradient)
    return norm(apart) / max(norm(gradient), 1e-300) if apart else 0.0


def in_float64(objective: Objective, params: Parameters, gradient: Parameters) -> Parameters:
    """The gradient in float64; empty where there is none or where it is another computation's."""
    wide = {n: p.double() for n, p in params.items()}
    try:
        other = objective.to(torch.float64)
        with torch.no_grad():
            one, two = float(objective.loss(params)), float(other.loss(wide))
        exact = replayed_gradient(other, wide)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return {}  # the model insists on a type of its own
    eps = max(torch.finfo(p.dtype).eps for p in params.values())
    if abs(one - two) <= SAME * eps * abs(two):
        return exact
    if abs(one - two) > SAME * eps:
        return {}  # of another dropout mask, say
    if not any(piece.random.moves for piece in objective.pieces):
        return exact  # nothing is drawn: where a softmax is saturated gradients are rounding
    apart = {n: gradient[n] - g for n, g in exact.items() if n in gradient}
    return exact if norm(apart) <= ALIKE * norm(exact) else {}
