"""Clipped: shifts that are flat near a point alone, as no sample reaches a kink there.

A bias whose unit is positive on every sample, or on none, has the gradient of one that nothing
reads. Tried together with all else, one of them would have everything looked at again; by
themselves shifts of vectors move next to nothing, and what breaks is located at once.
"""

from collections.abc import Sequence

import torch

from eqtoolbox.weights.search.enough import clips
from eqtoolbox.weights.search.joint import Candidate, located
from eqtoolbox.weights.search.problem import Problem
from eqtoolbox.weights.search.verification import change


def unclipped(
    problem: Problem, shifts: Sequence[Candidate], beside: Sequence[Candidate]
) -> list[Candidate]:
    """Shifts of a large model without those of vectors that a finite one of them is seen to break.

    Args:
        shifts: that the gradient proposes.
        beside: what else was proposed, whose law has a scale.
    """
    shape = problem.point.shapes
    tried = [c for c in shifts if all(len(shape[n]) == 1 for n in c.symmetry.names)]
    exact = problem.value.dtype == torch.float64 and not problem.point.whole
    kinked = any(clips(node) for node in problem.trace.nodes)
    if not tried or not exact or not kinked:
        return [*shifts]
    moves = [c.along(1.0) for c in tried]
    if change(problem.loss, problem.point, moves, problem.value) <= problem.small:
        return [*shifts]
    least = max((c.scale for c in beside), default=0.0)
    found = zip(tried, located(problem, tried, 0.5, least), strict=True)
    broken = {id(c) for c, order_1 in found if order_1 > problem.small}
    return [c for c in shifts if id(c) not in broken]
