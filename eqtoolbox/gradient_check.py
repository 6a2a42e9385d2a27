"""The gradient check: is the replayed loss the one that trains, and if not, why?"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.objective import Objective, Parameters
from eqtoolbox.unwrap import processes

MIN_COSINE = 0.99  # replayed against training gradient; below it the loss is another
SAME = 1e-3  # relative distance that rounding explains, half precision included


@dataclass(frozen=True, kw_only=True)
class GradientCheck:
    """Replayed gradient r against the gradient g that the optimizer used."""

    cosine: float  # <r, g> / |r||g|
    ratio: float  # |g| / |r|; below 1 where the gradient was clipped by its norm
    cause: str  # why they differ, as far as it shows; empty where they agree


def replayed_gradient(objective: Objective, params: Parameters) -> dict[str, Tensor]:
    """Gradient of the objective at `params`, one micro-batch after the other."""
    leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
    total: dict[str, Tensor] = {}
    for piece in objective.pieces:
        with piece.scope(leaves):
            rows = torch.autograd.grad(piece.loss(leaves), list(leaves.values()), allow_unused=True)
        for name, row in zip(leaves, rows, strict=True):
            if row is not None:
                row = row.to_dense()
                total[name] = total[name] + row if name in total else row
    return total


def compare(
    replayed: Parameters, gradient: Parameters, before: Parameters, hooked: list[str]
) -> GradientCheck:
    """Compare two gradients and name the likely cause of a difference.

    Args:
        replayed: of the loss that probes evaluate.
        gradient: as the optimizer was given it.
        before: the parameters they belong to.
        hooked: parameters with hooks of the user's, which may change the gradient.
    """
    names = [n for n in replayed if n in gradient]
    r = {n: replayed[n].detach().double() for n in names}
    g = {n: gradient[n].detach().double() for n in names}
    one, two = _norm(r), _norm(g)
    cosine = _dot(r, g) / (one * two) if one * two > 0 else math.nan
    ratio = two / one if one > 0 else math.nan
    wrong = cosine < MIN_COSINE
    cause = _cause(r, g, before, hooked) if wrong else _scaled(cosine, ratio)
    return GradientCheck(cosine=cosine, ratio=ratio, cause=cause)


def _cause(r: Parameters, g: Parameters, before: Parameters, hooked: list[str]) -> str:
    limit = max(float(x.abs().max()) for x in g.values())
    clipped = {n: x.clamp(-limit, limit) for n, x in r.items()}
    if _norm(_minus(clipped, g)) <= SAME * _norm(g):
        return f"the gradient was clipped by value at {limit:.3g}"
    rest = _minus(g, r)
    theta = {n: before[n].detach().double() for n in r}
    if _aligned(rest, theta):
        size = _norm(rest) / max(_norm(theta), 1e-300)
        return f"an L2 regulariser outside the loss function (about {size / 2:.3g} |theta|^2)"
    signs = {n: x.sign() for n, x in theta.items()}
    if _aligned(rest, signs):
        return "an L1 regulariser outside the loss function"
    odd = [n for n in r if _norm({n: r[n]}) > 0 and _norm({n: g[n]}) == 0]
    if odd:
        return f"the loop set the gradient of {odd[0]} to zero"
    if hooked:
        return f"{hooked[0]} has a hook that may change its gradient"
    if processes() > 1:
        return f"gradients are averaged over {processes()} processes, the loss is this one's own"
    return (
        "a part of the loss outside the decorated function, a second backward, or a random loss; "
        "put all of it into the function that monitor.loss decorates"
    )


def _scaled(cosine: float, ratio: float) -> str:
    power = math.log2(ratio) if ratio > 0 and math.isfinite(ratio) else 0.0
    if cosine >= 1 - SAME and power > 0.5:
        still = abs(power - round(power)) < SAME
        return f"the gradient is {ratio:.4g} times the replayed one" + (
            ": still scaled by a gradient scaler, or summed over backwards" if still else ""
        )
    return ""


def _aligned(a: Parameters, b: Parameters) -> bool:
    size = _norm(a) * _norm(b)
    return size > 0 and abs(_dot(a, b)) / size > MIN_COSINE


def _minus(a: Parameters, b: Parameters) -> Parameters:
    return {n: a[n] - b[n] for n in a}


def _dot(a: Parameters, b: Parameters) -> float:
    return sum(float((a[n].conj() * b[n]).real.sum()) for n in a)


def _norm(a: Parameters) -> float:
    return math.sqrt(max(_dot(a, a), 0.0))
