"""Joint verification: one random element of all symmetries, and order 1 of every unit.

Order 1 at theta locates what is broken; order 0 of the joint element finds what order 1 cannot
see there. What fails is then located by order 1 half way to the element, and by halves where that
does not see it either. Symmetries that an epsilon may break are apart from the others, so that what
an epsilon leaves hides nothing: of them the law of the steady loss is checked, which they keep to
rounding.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search.moves import Move, move
from eqtoolbox.weights.search.problem import Problem
from eqtoolbox.weights.search.slopes import Slopes, over, units
from eqtoolbox.weights.search.steady import Steady
from eqtoolbox.weights.search.turned import TurnedSearch
from eqtoolbox.weights.search.verification import (
    change,
    draw,
    gradients,
    joint_changes,
    judged,
    limit,
)

log = logging.getLogger(__name__)

# of a tolerance: below it, no element of the size that is tried leaves more than the tolerance
_NEAR = 0.1


@dataclass(frozen=True, eq=False)
class Candidate:
    """A symmetry to be judged, with the element it is moved by and its law of order 1 there."""

    symmetry: ContinuousSymmetry
    element: Tensor  # c, (dimension,)
    residual: float  # of order 1, the worst of all generators
    slopes: Tensor | None = None  # <g, K_i>, (dimension,); None: the gradient proposed it
    size: float = 0.0  # what they count relative to, all units together
    inert: Sequence[int] = ()  # units that the gradient at the point says nothing of

    @property
    def moves(self) -> list[Move]:
        """To c, and from there to -c: a dead unit is flat on one side only."""
        return [self.along(1.0), self.along(-2.0)]

    @property
    def scale(self) -> float:
        """What a unit's slope would be if nothing cancelled; 0 where the gradient proposed it."""
        return self.size / units(self.symmetry.form) if self.size else 0.0

    def along(self, share: float) -> Move:
        """By a share of c."""
        return move(self.symmetry, self.symmetry.flow(share * self.element))


def candidate(problem: Problem, slopes: Slopes, which: int) -> Candidate:
    """A symmetry that the trace proposed, with its law at the point."""
    symmetry = slopes.symmetries[which]
    element = draw(symmetry, problem.value, problem.random)
    if symmetry.tolerance:  # what an epsilon leaves depends on the size, which is no matter of luck
        element = 2 * symmetry.strength * element.sign()
    return Candidate(
        symmetry=symmetry,
        element=element,
        residual=slopes.residual(which),
        slopes=slopes.of(which),
        size=slopes.sizes[which],
        inert=slopes.inert(which),
    )


def proposed(problem: Problem, symmetry: ContinuousSymmetry) -> Candidate:
    """A symmetry that the gradient proposed: order 1 holds."""
    element = draw(symmetry, problem.value, problem.random)
    return Candidate(symmetry=symmetry, element=element, residual=0.0)


def judged_together(
    problem: Problem,
    candidates: Sequence[Candidate],
    beside: Sequence[list[Move]] = (),
    turned: TurnedSearch | None = None,
) -> tuple[list[ContinuousSymmetry], list[float]]:
    """Each symmetry with its status, in their order; and how the loss changes by what is beside.

    Args:
        beside: two moves each of what else is to be tried, in the same evaluations.
        turned: what else moves inputs along.
    """
    near = [k for k, c in enumerate(candidates) if c.symmetry.tolerance]
    # first, as most of the point is left as it is
    normalised = _normalised(problem, [candidates[k] for k in near])
    worst = [c.residual for c in candidates]
    exact = [k for k, c in enumerate(candidates) if not c.symmetry.tolerance]
    holding = [k for k in exact if worst[k] <= problem.small]
    found, changes = _moved(problem, [candidates[k] for k in holding], beside, turned)
    for k, residual in zip(holding, found, strict=True):
        worst[k] = max(worst[k], residual)
    again = [k for k in holding if worst[k] <= problem.small]
    for k, order_1 in zip(again, _again(problem, [candidates[k] for k in again]), strict=True):
        worst[k] = max(worst[k], order_1)
    dtype = problem.value.dtype
    each = [judged(c.symmetry, worst[k], dtype) for k, c in enumerate(candidates)]
    for k, symmetry in zip(near, normalised, strict=True):
        each[k] = symmetry
    return each, changes


def _moved(
    problem: Problem,
    holding: Sequence[Candidate],
    beside: Sequence[list[Move]],
    turned: TurnedSearch | None,
) -> tuple[list[float], list[float]]:
    """Residuals where all are moved, of order 1 where it is not small, else of order 0; beside."""
    moves = [*(c.moves for c in holding), *beside]
    with_inputs = None if turned is None else turned.along(moves)
    if with_inputs is not None:
        return [with_inputs] * len(holding), [with_inputs] * len(beside)
    seen = problem.along(moves)
    worst = max(seen, default=0.0)
    if worst <= problem.small:
        return [worst] * len(holding), [worst] * len(beside)
    found = located(problem, holding, 1.5 - len(seen))
    left = [k for k, order_1 in enumerate(found) if not order_1 > problem.small]
    rest = [*(holding[k].moves for k in left), *beside]
    changes = problem.changes(rest, failing=len(left) == len(holding))
    for k, order_0 in zip(left, changes, strict=False):
        found[k] = order_0
    return found, changes[len(left) :]


def located(
    problem: Problem, holding: Sequence[Candidate], share: float, least: float = 0.0
) -> list[float]:
    """Residuals of order 1 half way to where they fail, over the largest scale of all.

    There what is linear at the point and dead where it fails is neither; and what has no gradient
    but rounding, such as a bias before a normalisation, has no scale of its own.

    Args:
        holding: what is moved.
        share: of their elements, by which they are moved.
        least: the scale where all of them are smaller.
    """
    members, there = _along(problem, holding, share)
    largest = max((there.scale(k) for k in range(len(members))), default=0.0)
    largest = max(largest, least) or 1.0
    found = {id(c): there.largest(k) / largest for k, c in enumerate(members)}
    return [found.get(id(c), 0.0) for c in holding]


def _along(
    problem: Problem, holding: Sequence[Candidate], share: float
) -> tuple[list[Candidate], Slopes]:
    """Slopes of order 1 where all are moved by a share of c, and of which of them: what can be."""
    whole = problem.point.whole
    members = [c for c in holding if whole or c.symmetry.separable]
    there = Slopes([c.symmetry for c in members])
    names = {n for c in members for n in c.symmetry.names}
    if members:
        moves = [c.along(share) for c in members]
        gradients(problem.loss, problem.point, there.add, moves, names)
    return members, there


def _again(problem: Problem, holding: Sequence[Candidate]) -> list[float]:
    """Residuals of order 1 where all are moved; 0 where order 0 in float64 says it all.

    A change of the loss below float32's rounding is none that order 0 sees there, and a small
    model is looked at twice for next to nothing.
    """
    members = [c for c in holding if c.slopes is not None]
    if problem.exact:
        return [0.0] * len(holding)
    asked, there = _along(problem, members, 1.0)
    found = {id(c): there.residual(k) for k, c in enumerate(asked)}
    return [found.get(id(c), 0.0) for c in holding]


def _normalised(problem: Problem, candidates: Sequence[Candidate]) -> list[ContinuousSymmetry]:
    """Symmetries that the epsilon of a normalisation may break.

    The residual is the larger of the slopes of all units over their scale (what a channel of small
    variance lacks is not held against the others) and |<g, K_c>| over |L|, by which the loss
    changes at first order; so is the one that epsilon predicts, of q in place of g. What epsilon
    leaves unexplained is looked at unit by unit.
    """
    dtype, size = problem.value.dtype, max(float(problem.trace.value.abs()), 1e-300)
    worst = [_residual(c, c.slopes, size) for c in candidates]
    changes = {k: worst[k] for k, c in enumerate(candidates) if worst[k] <= c.symmetry.tolerance}
    far = [k for k in changes if worst[k] > _NEAR * candidates[k].symmetry.tolerance]
    changes.update(zip(far, _changes(problem, [candidates[k] for k in far]), strict=True))
    for k in far:
        if changes[k] > candidates[k].symmetry.tolerance:
            worst[k] = changes.pop(k)
    found = [judged(c.symmetry, worst[k], dtype) for k, c in enumerate(candidates)]
    if not changes:
        return found
    tried = [candidates[k] for k in changes]
    left = _unexplained(problem, tried)
    if left is None:
        for k, found_change in zip(changes, _changes(problem, tried), strict=True):
            found[k] = judged(candidates[k].symmetry, max(worst[k], found_change), dtype)
        return found
    slopes, rest = left
    for n, (k, unexplained) in enumerate(zip(changes, rest, strict=True)):
        own = candidates[k].slopes
        assert own is not None, "a member has its slopes"
        predicted = _residual(candidates[k], own - slopes.of(n), size)
        status = found[k].status if unexplained <= limit(dtype) else "broken"
        epsilon = predicted if status != "verified" else found[k].epsilon
        found[k] = replace(found[k], status=status, epsilon=epsilon)
    return found


def _residual(candidate: Candidate, slopes: Tensor | None, size: float) -> float:
    if slopes is None:
        return candidate.residual
    relative = over(float(slopes.norm()), candidate.size)
    change = float((slopes * candidate.element.to(slopes)).sum().abs()) / size
    return max(relative, change)


def _unexplained(problem: Problem, tried: Sequence[Candidate]) -> tuple[Slopes, list[float]] | None:
    """Slopes and residuals in the steady loss; None where no epsilon is seen, or none can be asked.

    Of a large model in float64 order 0 of all is decisive, and only what fails has slopes made.
    Formulas in place of kernels may not run where these do.
    """
    slopes = Slopes([c.symmetry for c in tried])
    large = problem.exact
    moves = [c.moves[:1] for c in tried]
    try:
        loss = problem.loss if large else problem.whole  # as the slopes that it explains
        steady = Steady(loss, problem.amounts if large else None)
        if large:
            if not steady.base:
                return None
            kept = change(steady, problem.point, [m for (m,) in moves], problem.value)
            if kept <= problem.small:
                return slopes, [kept] * len(tried)
        names = {n for c in tried for n in c.symmetry.names}
        gradients(steady, problem.point, slopes.add, wanted=names)
        if not steady.base:
            return None
        value = problem.value if large else problem.total
        changes = joint_changes(steady, problem.point, moves, value, problem.small, large)
    except (LookupError, RuntimeError) as error:
        log.info("symmetries: epsilon could not be asked: %s", error)
        return None
    return slopes, [max(slopes.residual(k), c) for k, c in enumerate(changes)]


def _changes(problem: Problem, tried: Sequence[Candidate]) -> list[float]:
    """Change of the loss itself, together as far as the smallest tolerance allows."""
    small = min((c.symmetry.tolerance for c in tried), default=0.0)
    moves = [c.moves for c in tried]
    return problem.changes(moves, small=small)
