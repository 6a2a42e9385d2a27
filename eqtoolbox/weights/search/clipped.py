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


def unclipped(
    problem: Problem, shifts: Sequence[Candidate], beside: Sequence[Candidate]
) -> list[Candidate]:
    """Shifts of a large model without those of some entries that break half way to an element.

    Args:
        shifts: that the gradient proposes.
        beside: what else was proposed, whose law has a scale.
    """
    tried = [c for c in shifts if _of_some_entries(c, problem.point.shapes)]
    kinked = any(clips(node) for node in problem.trace.nodes)
    if not tried or not problem.exact or not kinked:
        return [*shifts]
    least = max((c.scale for c in beside), default=0.0)
    found = zip(tried, located(problem, tried, 0.5, least), strict=True)
    broken = {id(c) for c, order_1 in found if order_1 > problem.small}
    return [c for c in shifts if id(c) not in broken]


def _of_some_entries(shift: Candidate, shapes: Mapping[str, torch.Size]) -> bool:
    """Whether it moves vectors alone, and not all of their entries."""
    own = [shapes[n] for n in shift.symmetry.names]
    return all(len(s) == 1 for s in own) and shift.symmetry.dimension < max(map(math.prod, own))
