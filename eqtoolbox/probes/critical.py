"""Critical sharpness: how much longer a step could be before the loss grows, by forwards alone."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from eqtoolbox.expect.bounds import between
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Count
from eqtoolbox.record.record import Mode, Status
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.window import in_pieces
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.snapshot import NotApplicable, Snapshot
from eqtoolbox.watch.state import State

FARTHEST = 2.0**20  # multiple of a step that is looked at
Rise = Callable[[float], float]  # multiple of the step -> L there - L here


@dataclass(kw_only=True, eq=False)
class Critical(State):
    """What the last measured step found: where the next search begins."""

    factor: float = 1.0


@checked
@dataclass(frozen=True, kw_only=True)
class CriticalSharpness(Probe):
    """Multiple c of the optimizer's step d at which it would stop lowering the loss.

        c = min {c > 0: L(theta + c d) >= L(theta)},    critical sharpness = 2 / (c lr)

    For gradient descent on a quadratic loss along its top eigenvector that is the sharpness, and
    c < 1 where the learning rate is too large. It takes no second derivative and no vector beside
    the step: about 6 forwards where the last measured step is near, at any size, on shards and with
    fused kernels, too.

    factor: c; its error is half the width of what brackets it, and what the rounding of L moves it:
        2 eps |L| over the slope at c, at least 4 / c times the deepest fall before it (of a
        parabola). eps is of the coarsest parameter or autocast around the loss.
    sharpness: 2 / (c lr); not_applicable where groups have different rates.
    forwards: evaluations that it took.

    Args:
        rtol: relative width of the bracket to reach.
        max_forwards: evaluations at most.

    Reference: arXiv 2601.16979.

    Example:
        >>> CriticalSharpness(rtol=0.1).headline
        'factor'
    """

    name: ClassVar[str] = "critical"
    headline: ClassVar[str] = "factor"
    sharded: ClassVar[bool] = True
    mode: ClassVar[Mode] = "train"
    graphs: ClassVar[float] = 0.5
    copies: ClassVar[float] = 1.0
    state: ClassVar[type[State]] = Critical

    rtol: Annotated[float, between(0.001, 1.0)] = 0.05
    max_forwards: Count = 30

    def measure(
        self, snapshot: Snapshot, reference: Critical, rng: torch.Generator
    ) -> Iterator[Measurement]:
        if snapshot.after is None:
            raise NotApplicable("no optimizer step here: what is measured is along one")
        objective, before, after = snapshot.objective, snapshot.before, snapshot.after
        parts = snapshot.parts if snapshot.measured is snapshot.training else 1
        evaluated = in_pieces(objective, parts)

        @torch.no_grad()
        def loss(c: float) -> float:
            return float(evaluated.loss(_along(before, after, c)))

        here = loss(0.0)
        seen: dict[float, float] = {}

        def rise(c: float) -> float:
            if c not in seen:
                seen[c] = loss(c) - here
            return seen[c] if math.isfinite(seen[c]) else math.inf

        low, high = bracket(rise, reference.factor, self.rtol, self.max_forwards)
        if low == 0.0 or math.isinf(high):
            lowers = "no part of this step lowers" if low == 0.0 else "all of its multiples lower"
            raise NotApplicable(f"{lowers} the loss, as far as its rounding tells")
        rounding, deepest = 2 * _eps(objective, before) * abs(here), -min(map(rise, seen))
        if deepest <= rounding:
            raise NotApplicable(f"this step lowers the loss by {deepest:.1e}, within its rounding")
        factor = reference.factor = (low + high) / 2
        errors = (high - low) / 2, factor * rounding / (4 * deepest)
        error = math.hypot(*errors)
        status: Status = "ok" if 2 * max(errors) <= self.rtol * high else "not_converged"
        yield Measurement("factor", factor, stderr=error, status=status)
        rates = {g.lr for g in snapshot.groups if g.names and math.isfinite(g.lr)}
        if len(rates) == 1 and (rate := rates.pop()) > 0:
            sharpness = 2 / (factor * rate)
            stderr = sharpness * error / factor
            yield Measurement("sharpness", sharpness, stderr=stderr, status=status)
        else:
            why = "it is over one learning rate, and groups have several or none"
            yield Measurement("sharpness", math.nan, status="not_applicable", note=why)
        yield Measurement("forwards", float(len(seen) + 1))


def bracket(rise: Rise, start: float, rtol: float, most: int) -> tuple[float, float]:
    """Where a function that falls first begins to be >= 0: (below, from there on), of c > 0.

    Doubles or halves from `start` until it is bracketed, then takes the root of a parabola through
    zero and both ends, kept off the ends, so that the bracket shrinks from both sides.

    Args:
        rise: the function, 0 at 0.
        start: where the search begins.
        rtol: width over the upper end to reach.
        most: evaluations at most.

    Returns:
        (0, c) where it falls nowhere that was looked at, (c, inf) where it does everywhere.

    Example:
        >>> low, high = bracket(lambda c: c * (c - 3.0), 1.0, 0.01, 30)
        >>> low < 3.0 <= high and high - low <= 0.03
        True
    """
    c, spent = start, 1
    if rise(c) < 0:
        low, high = c, math.inf
        while high == math.inf and c < FARTHEST and spent < most:
            c, spent = 2 * c, spent + 1
            low, high = (c, high) if rise(c) < 0 else (low, c)
    else:
        low, high = 0.0, c
        while low == 0.0 and c > 1 / FARTHEST and spent < most:
            c, spent = c / 2, spent + 1
            low, high = (c, high) if rise(c) < 0 else (low, c)
    while low > 0 and high < math.inf and high - low > rtol * high and spent < most:
        c, spent = _between(low, high, rise(low) / low, rise(high) / high, rtol), spent + 1
        low, high = (c, high) if rise(c) < 0 else (low, c)
    return low, high


def _between(low: float, high: float, below: float, above: float, rtol: float) -> float:
    """A point between: where the line through both slopes is zero, a third of `rtol` off the ends.

    Args:
        low: end at which the function is below zero.
        high: the other one.
        below: the function over its argument at `low`.
        above: the same at `high`.
        rtol: as `bracket` takes it.
    """
    root = low + (high - low) * below / (below - above) if math.isfinite(above) else low
    off = min(0.35 * rtol * high, (high - low) / 2)
    middle = (low + high) / 2
    near = root + off if root < middle else root - off  # past the root: the other end moves
    return min(max(near, low + off), high - off) if math.isfinite(near) else middle


def _eps(objective: Objective, params: Parameters) -> float:
    """Relative rounding of the loss: that of the coarsest type it is computed with."""
    types = {p.dtype for p in params.values()} | {*(objective.autocast or ())[1:]}
    return max(torch.finfo(dtype).eps for dtype in types)


def _along(before: Parameters, after: Parameters, c: float) -> Parameters:
    """theta + c d."""
    return {n: torch.add(p, after[n] - p, alpha=c) for n, p in before.items()}
