"""The gradient check: is the replayed loss the one that trains, and if not, why?"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.replay.gradients import leaf
from eqtoolbox.replay.heap import tidy
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.operations import by_kernels
from eqtoolbox.replay.thread.scope import current
from eqtoolbox.world.reducing import axis_of, reduced, totalled

MIN_COSINE = 0.99  # replayed against training gradient; below it the loss is another
RANDOM = 1e-4  # relative change of a loss evaluated again; rounding gives 1e-7
STALE = (
    "gradients were left from before when the first backward of the step came: "
    "optimizer.zero_grad() is missing, and .grad is a sum over steps"
)
PIECE = 2**20  # numbers that are compared at a time: no copy of a gradient is made
SAME = 1e-3  # relative distance that rounding explains, half precision included


@dataclass(frozen=True, kw_only=True)
class GradientCheck:
    """Replayed gradient r against the gradient g that the optimizer used."""

    cosine: float  # <r, g> / |r||g|
    ratio: float  # |g| / |r|; below 1 where the gradient was clipped by its norm
    cause: str  # why they differ, as far as it shows; empty where they agree
    changed: bool = False  # the loss is the right one: its gradient was changed afterwards


def replayed_gradient(
    objective: Objective, params: Parameters, scale: float = 1.0
) -> dict[str, Tensor]:
    """Gradient of the objective at `params`, one micro-batch after the other.

    Args:
        objective, params: what is differentiated, and where.
        scale: of a gradient scaler, by which the loss was multiplied where float16 was: without it
            small slopes would be rounded to 0 here that were not in training.
    """
    replay = current()
    if replay is not None:  # which puts back what a loss writes into them
        replay.protect(params)
    leaves = {
        n: p.clone().requires_grad_() if replay is None else leaf(p.detach())
        for n, p in params.items()
    }
    found = by_kernels(_gradient, objective, leaves, scale)
    tidy(leaves.values())
    return found


def _gradient(objective: Objective, leaves: Parameters, scale: float) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for piece in objective.pieces:
        with piece.scope(leaves):
            loss = piece.loss(leaves) * scale
            rows = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for name, row in zip(leaves, rows, strict=True):
            if row is not None:
                row = row.to_dense() if scale == 1 else row.to_dense() / scale
                total[name] = total[name] + row if name in total else row
        del loss, rows
    return total


def repeats(objective: Objective, params: Parameters) -> float:
    """Relative change of the loss when it is evaluated again; 0 where it is repeatable."""
    with torch.no_grad():
        one, two = float(objective.loss(params)), float(objective.loss(params))
    return abs(one - two) / max(abs(one), 1e-30)


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What else is known about the step."""

    hooked: tuple[str, ...] = ()  # parameters and modules with hooks on their gradients
    passed_by: bool = False  # hooks on all modules, which a replay does not call beside threads
    unreached: bool = False  # losses were caught, and a backward reached none of them
    climbed: str = ""  # who moved the parameters between the losses and the step
    accumulates: bool = False  # whether the loss runs a backward of its own through the model
    stale: bool = False  # gradients of earlier backwards were left when its first one came
    beside: str = ""  # how what is differentiated is another function than the losses
    repeated: float = 0.0  # relative change of the loss when evaluated again


def compare(
    replayed: Parameters,
    gradient: Parameters,
    before: Parameters,
    circumstances: Circumstances | None = None,
) -> GradientCheck:
    """Compare two gradients and name the likely cause of a difference.

    Args:
        replayed: of the loss that probes evaluate.
        gradient: as the optimizer was given it.
        before: the parameters they belong to.
        circumstances: that tell some causes.
    """
    told = circumstances or Circumstances()
    names = [n for n in replayed if n in gradient]
    r = {n: replayed[n].detach() for n in names}
    g = {n: gradient[n].detach() for n in names}
    one, inner, two = _products(r, g)
    one, two = math.sqrt(one), math.sqrt(two)
    cosine = inner / (one * two) if one * two > 0 else math.nan
    ratio = two / one if one > 0 else math.nan
    wrong = cosine < MIN_COSINE
    changed = _change(r, g, told) if wrong else ""
    cause = changed or (_cause(r, g, before, told) if wrong else _scaled(cosine, ratio))
    cause = cause or told.beside
    if cause and told.stale and not told.accumulates and told.repeated <= RANDOM:
        changed, cause = "", STALE
    return GradientCheck(cosine=cosine, ratio=ratio, cause=cause, changed=bool(changed))


def _change(r: Parameters, g: Parameters, told: Circumstances) -> str:
    """What was done to the gradient of a loss that is the right one; empty where nothing shows."""
    if told.repeated > RANDOM:
        return ""
    if told.climbed:
        return (
            f"{told.climbed} moved the parameters between the losses and the step, so that the "
            "optimizer was given the gradient of another point (as SAM does, which climbs before "
            "its base optimizer steps); curvature is that of the loss where the step started"
        )
    if told.accumulates:
        return (
            "the loss runs a backward of its own, which adds to the gradients of the model, so "
            "that the step is given the sum of both; take that gradient by torch.autograd.grad, or "
            "name what it is for in backward(inputs=...)"
        )
    if not any(x.is_complex() for x in r.values()):  # which nobody clips by value
        limit = max(float(x.abs().max()) for x in g.values() if x.numel())
        clipped = {n: x.clamp(-limit, limit) for n, x in r.items()}
        if _norm_of((1.0, clipped), (-1.0, g)) <= SAME * _norm(g):
            return f"the gradient was clipped by value at {limit:.3g}"
    odd = [n for n in r if _norm({n: r[n]}) > 0 and _norm({n: g[n]}) == 0]
    return f"the loop set the gradient of {odd[0]} to zero" if odd else ""


def _cause(r: Parameters, g: Parameters, before: Parameters, told: Circumstances) -> str:
    if told.repeated > RANDOM:
        return f"the loss is random: evaluated twice it changed by {told.repeated:.1%}"
    theta = {n: before[n].detach() for n in r}
    shrink = _part_along(r, g, theta)
    if shrink is not None:
        return f"an L2 regulariser outside the loss function (about {shrink / 2:.3g} |theta|^2)"
    if _part_along(r, g, {n: x.sgn() for n, x in theta.items()}) is not None:
        return "an L1 regulariser outside the loss function"
    if told.hooked:
        return f"{told.hooked[0]} has a hook that may change its gradient"
    if told.passed_by:
        return "a forward hook on all modules, which probes do not call while other threads run"
    if told.unreached:
        return "no backward reached a loss that was caught: the step trains on another loss"
    if told.beside:
        return f"{told.beside}; put all of it into the function that monitor.loss decorates"
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


def _part_along(r: Parameters, g: Parameters, direction: Parameters) -> float | None:
    """b of g = a (r + b direction), a > 0 for clipping by norm; None where that is not what g is.

    The two directions span a plane; g must lie in it.
    """
    rr, dd, rd = _dot(r, r), _dot(direction, direction), _dot(r, direction)
    determinant = rr * dd - rd * rd
    if determinant <= 1e-12 * rr * dd or dd == 0:
        return None
    rg, dg = _dot(r, g), _dot(direction, g)
    a = (rg * dd - dg * rd) / determinant
    b = (dg * rr - rg * rd) / determinant
    if a <= 0 or _norm_of((1.0, g), (-a, r), (-b, direction)) > SAME * _norm(g):
        return None
    return b / a


def _dot(a: Parameters, b: Parameters) -> float:
    found: dict[str, float] = {}  # by the axis along which shards lie
    for name in a:
        axis = axis_of(name, a[name])
        own = sum(float((x.conj() * y).real.sum()) for x, y in _pieces(a[name], b[name]))
        found[axis] = found.get(axis, 0.0) + own
    return sum(reduced(axis, found[axis]) for axis in sorted(found))


def _products(a: Parameters, b: Parameters) -> tuple[float, float, float]:
    """<a, a>, <a, b> and <b, b>, of one reading."""
    found: dict[str, Tensor] = {}  # by the axis along which shards lie
    for name in a:
        axis = axis_of(name, a[name])
        for piece in _pieces(a[name], b[name]):
            rows = torch.stack(piece)
            own = (rows.conj() @ rows.T).real
            found[axis] = found[axis] + own.to(found[axis].device) if axis in found else own
    total = sum((totalled(axis, found[axis].cpu()) for axis in sorted(found)), torch.zeros(2, 2))
    return float(total[0, 0]), float(total[0, 1]), float(total[1, 1])


def _norm_of(*terms: tuple[float, Parameters]) -> float:
    """Norm of a sum of multiples."""
    square: dict[str, float] = {}
    for name, like in terms[0][1].items():
        axis = axis_of(name, like)
        for piece in _pieces(*(vector[name] for _, vector in terms)):
            rest = sum(c * x for (c, _), x in zip(terms, piece, strict=True))
            own = float(torch.linalg.vector_norm(rest).square())
            square[axis] = square.get(axis, 0.0) + own
    return math.sqrt(sum(reduced(axis, square[axis]) for axis in sorted(square)))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, a million numbers of each at a time, in the next wider type."""
    for piece in zip(*(torch.split(t.reshape(-1), PIECE) for t in tensors), strict=True):
        yield tuple(x.to(torch.promote_types(x.dtype, torch.float64)) for x in piece)


def _norm(a: Parameters) -> float:
    return math.sqrt(max(_dot(a, a), 0.0))
