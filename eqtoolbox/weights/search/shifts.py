"""Shifts: what gradients propose, once they have come."""

from torch import Tensor

from eqtoolbox.weights.families.translation import Translation
from eqtoolbox.weights.forms.maps import Reader
from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search.bias_shifts import propose_bias_shifts, vectors_read
from eqtoolbox.weights.search.compensations import propose_compensations
from eqtoolbox.weights.search.moves import Move
from eqtoolbox.weights.search.point import Point
from eqtoolbox.weights.search.problem import Problem
from eqtoolbox.weights.search.rounding import significant
from eqtoolbox.weights.search.translations import TranslationSearch
from eqtoolbox.weights.search.verification import gradients

_SMALL = 0.01  # of weights, at which they saturate nothing


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


def sift(problem: Problem, shifts: TranslationSearch) -> None:
    """Leave out single entries whose slopes cancel at one point alone, and those that vanish.

    The loss is evaluated for it: within what observes draws and writes.
    """
    for point in (problem.point, *problem.point.others()) if problem.point.whole else ():
        if not shifts.unseen:
            break
        shifts.but_for(_shrunk(problem, point))
    doubted = shifts.doubted()
    if doubted:
        shifts.settle(significant(problem, doubted))


def _shrunk(problem: Problem, point: Point) -> TranslationSearch:
    """What the gradient shows where all weights are small, and nothing is saturated by them."""
    found = TranslationSearch.of(problem.trace)
    shrunk = Move(frozenset(point), True, lambda given: {n: _SMALL * p for n, p in given.items()})
    gradients(problem.whole, point, lambda _, gradient: found.add(gradient), [shrunk])
    return found


def translations(shifts: TranslationSearch) -> tuple[list[Translation], set[str]]:
    """Those found, and the parameters of which a common constant is one."""
    flatly = list(shifts.proposals())
    common = {t.name for s in flatly for t in s.shifts if t.cut is not None and t.cut[1:] == (1, 1)}
    return flatly, common
