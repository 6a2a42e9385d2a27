"""Shifts: what gradients propose, once they have come."""

from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search.bias_shifts import propose_bias_shifts
from eqtoolbox.weights.search.compensations import propose_compensations
from eqtoolbox.weights.search.problem import Problem
from eqtoolbox.weights.search.translations import TranslationSearch


def propose_shifts(problem: Problem, shifts: TranslationSearch) -> list[ContinuousSymmetry]:
    """What the gradient proposes: order 1 holds."""
    flatly = list(shifts.proposals())
    common = {t.name for s in flatly for t in s.shifts if t.cut is not None and t.cut[1:] == (1, 1)}
    return [
        *flatly,
        *propose_bias_shifts(problem.trace, problem.point, shifts.vectors),
        *propose_compensations(shifts.in_order(shifts.columns), problem.point.shapes, common),
    ]
