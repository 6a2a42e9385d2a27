"""Clipped: shifts that are flat near a point alone, as no sample reaches a kink there.

A bias whose unit is positive on every sample, or on none, has the gradient of one that nothing
reads. Tried together with all else, one of them would have everything looked at again; by
themselves shifts of vectors move next to nothing, and what breaks is located at once.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from eqtoolbox.weights.search.enough import clips
from eqtoolbox.weights.search.joint import Candidate, located
from eqtoolbox.weights.search.problem import Problem
from eqtoolbox.weights.search.verification import changes_along, joint_changes

_BY_HALVES = 2  # so many are tried by themselves in the time of a gradient


def unclipped(
    problem: Problem, shifts: Sequence[Candidate], beside: Sequence[Candidate]
) -> list[Candidate]:
    """Shifts of a large model without those of some entries that break on the way to an element.

    Args:
        shifts: that the gradient proposes.
        beside: what else was proposed, whose law has a scale.
    """
    tried = [c for c in shifts if _of_some_entries(c, problem.point.shapes)]
    kinked = any(clips(node) for node in problem.trace.nodes)
    if not tried or not problem.exact or not kinked:
        return [*shifts]
    least = max((c.scale for c in beside), default=0.0)
    left = _keeping(problem, tried, least)
    broken = {id(c) for c in tried} - {id(c) for c in left}
    return [c for c in shifts if id(c) not in broken]


def _keeping(problem: Problem, tried: Sequence[Candidate], least: float) -> list[Candidate]:
    """Those that keep the loss of few samples, found by order 1 where that sees who does not."""
    loss, point, value, small = problem.loss, problem.point, problem.value, problem.small
    left = [*tried]
    while left:
        moves = [c.moves for c in left]
        seen = changes_along(loss, point, moves, value, small)
        if max(seen) <= small:
            break
        there = 3.0 - 2.0 * len(seen)  # the share of the elements at which the loss has changed
        holding = left
        for share in (0.5 * there, there):  # a kink may lie beyond, or all of a unit before it
            if len(holding) == len(left) > _BY_HALVES:
                residuals = located(problem, left, share, least)
                holding = [c for c, r in zip(left, residuals, strict=True) if not r > small]
        if len(holding) == len(left):
            found = joint_changes(loss, point, moves, value, small, failing=True)
            return [c for c, f in zip(left, found, strict=True) if f <= small]
        left = holding
    return left


def _of_some_entries(shift: Candidate, shapes: Mapping[str, torch.Size]) -> bool:
    """Whether it moves vectors alone, and not all of their entries."""
    own = [shapes[n] for n in shift.symmetry.names]
    return all(len(s) == 1 for s in own) and shift.symmetry.dimension < max(map(math.prod, own))
