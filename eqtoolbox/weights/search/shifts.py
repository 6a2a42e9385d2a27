"""Shifts: what gradients propose, once they have come."""

from torch import Tensor

from eqtoolbox.weights.families.translation import Translation
from eqtoolbox.weights.forms.maps import Reader
from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search.bias_shifts import propose_bias_shifts, vectors_read
from eqtoolbox.weights.search.compensations import propose_compensations
from eqtoolbox.weights.search.problem import Problem
from eqtoolbox.weights.search.translations import TranslationSearch


def propose_shifts(problem: Problem, shifts: TranslationSearch) -> list[ContinuousSymmetry]:
    """What the gradient proposes: order 1 holds."""
    flatly, common = translations(shifts)
    point, vectors = problem.point, shifts.vectors

    def pulled(reader: Reader) -> Tensor:
        params = {m.name: point.read(m.name) for m in reader.maps}
        return reader.pulled(params, vectors[reader.bias])

    return [
        *flatly,
        *propose_bias_shifts(vectors_read(problem.trace), pulled, vectors),
        *propose_compensations(shifts.in_order(shifts.columns), point.shapes, common),
    ]


def translations(shifts: TranslationSearch) -> tuple[list[Translation], set[str]]:
    """Those found, and the parameters of which a common constant is one."""
    flatly = list(shifts.proposals())
    common = {t.name for s in flatly for t in s.shifts if t.cut is not None and t.cut[1:] == (1, 1)}
    return flatly, common
