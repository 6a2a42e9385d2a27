"""Again: what an earlier search found for the same structure, confirmed at one joint element.

Nothing that was saved is believed: it only says which proposals of the trace to try, so that one
gradient and one element of all of them, forth and back, stand for the rounds of a search. Where
anything is not as it was, the search is made anew.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from eqtoolbox.weights.parameter import (
    ContinuousSymmetry,
    DiscreteSymmetry,
    Parameters,
    ParameterSymmetry,
)
from eqtoolbox.weights.search.discrete import DiscreteProposals, elements_of
from eqtoolbox.weights.search.enough import Divisible, on_few
from eqtoolbox.weights.search.equivariances import confirmed, propose_equivariances
from eqtoolbox.weights.search.found import Found, KnownRow, KnownSymmetries, structure_of
from eqtoolbox.weights.search.inert import apart, exchanged, looked_at_elsewhere
from eqtoolbox.weights.search.joint import proposed
from eqtoolbox.weights.search.member import proposals
from eqtoolbox.weights.search.members import each_member
from eqtoolbox.weights.search.moves import Move
from eqtoolbox.weights.search.problem import Problem
from eqtoolbox.weights.search.shifts import propose_shifts, sift
from eqtoolbox.weights.search.slopes import Slopes
from eqtoolbox.weights.search.translations import TranslationSearch

log = logging.getLogger(__name__)
Pairs = list[tuple[ParameterSymmetry, KnownRow]]


class Otherwise(Exception):
    """Something is not as it was found before; the message says what."""


def again(problem: Problem, known: KnownSymmetries, samples: Divisible | None = None) -> Found:
    """The same symmetries as before, with what was found of them.

    Args:
        samples: of the batch, where finite changes may be looked at on few of them.

    Raises:
        Otherwise: the computation is another one, or something is not confirmed.
    """
    structure = structure_of(problem.trace)
    if structure != known.structure:
        raise Otherwise("the computation is another one")
    found, state = each_member(problem.trace, largest=known.largest)
    chains = [trials for _, trials in proposals(found)]
    discrete = DiscreteProposals(problem.trace, chains)
    slopes = Slopes([trial for trials in chains for trial in trials], lit=True)
    shifts = TranslationSearch.of(problem.trace)

    def receive(params: Parameters, gradient: Parameters) -> None:
        slopes.add(params, gradient)
        shifts.add(gradient)

    problem.gradient(receive)
    problem = on_few(problem, samples)
    looked_at_elsewhere(problem, slopes)
    sift(problem, shifts)
    flat = propose_shifts(problem, shifts)
    pairs = _paired(
        _whole(known.rows),
        [*slopes.symmetries, *flat, *propose_equivariances(problem), *discrete.every],
    )
    chosen = {id(symmetry) for symmetry, _ in pairs}
    if not all(any(id(t) in chosen for t in trials) for trials in chains):
        raise Otherwise("a member of the trace is not among what was found")
    _check_residuals(problem, pairs)
    _check_slopes(problem, slopes, pairs)
    _check_element(problem, pairs)
    if not confirmed(problem, [s for s, _ in pairs if _moves_outputs(s)]):
        raise Otherwise("the outputs do not move as they did")
    pinned = state.pinned.joined(discrete.pinned)
    inert = {id(s): slopes.inert(k) for k, s in enumerate(slopes.symmetries)}
    every: list[ParameterSymmetry] = []
    for s, row in pairs:
        same = replace(s, status=row.status, residual=row.residual, epsilon=row.epsilon)
        every += apart(same, inert.get(id(s), ()))
    names = {(s.family, s.name) for s in every if s.status == "inert"}
    said = [note for key, note in slopes.inert_notes() if key in names]
    notes = [*problem.trace.notes, *pinned.notes(), *said, *shifts.notes()]
    return Found(exchanged(every), notes, structure, known.largest)


def _whole(rows: Sequence[KnownRow]) -> list[KnownRow]:
    """Rows with the inert units among the others, as the trace proposes them."""
    found: list[KnownRow] = []
    for row in rows:
        last = found[-1] if found else None
        if row.status != "inert":
            found.append(row)
        elif last is not None and (last.family, last.name) == (row.family, row.name):
            found[-1] = replace(last, dimension=last.dimension + row.dimension)
        else:
            found.append(replace(row, status="verified", residual=0.0))
    return found


def _paired(rows: Sequence[KnownRow], every: Sequence[ParameterSymmetry]) -> Pairs:
    """Each row with the proposal that it is called by."""
    named: dict[tuple[str, str, int], list[ParameterSymmetry]] = {}
    for symmetry in every:
        key = (symmetry.family, symmetry.name, symmetry.dimension)
        named.setdefault(key, []).append(symmetry)
    pairs = []
    for row in rows:
        if not named.get(row.key):
            raise Otherwise(f"{row.family} {row.name} is not proposed")
        pairs.append((named[row.key].pop(0), row))
    return pairs


def _check_residuals(problem: Problem, pairs: Pairs) -> None:
    """What is said to have been measured goes with what is said to hold."""
    for symmetry, row in pairs:
        holds = row.residual <= _bound(problem, symmetry, row)
        if not holds and row.status != "broken":
            raise Otherwise(f"{row.family} {row.name} is said to be {row.status} and is not")


def _moves_outputs(symmetry: ParameterSymmetry) -> bool:
    return isinstance(symmetry, ContinuousSymmetry) and symmetry.equivariant


def _check_slopes(problem: Problem, slopes: Slopes, pairs: Pairs) -> None:
    """Order 1 of every member: within its status."""
    rows = {id(symmetry): row for symmetry, row in pairs}
    for k, symmetry in enumerate(slopes.symmetries):
        row = rows.get(id(symmetry))
        if row is None:
            continue
        bound = _bound(problem, symmetry, row)
        residual = slopes.residual(k) if bound == problem.small else slopes.overall(k)
        if (residual <= bound) == (row.status == "broken"):
            raise Otherwise(f"{row.family} {row.name} is not {row.status}")


def _bound(problem: Problem, symmetry: ParameterSymmetry, row: KnownRow) -> float:
    """Residual up to which a symmetry is what a row says, or is not broken."""
    return problem.small if row.status == "verified" else max(symmetry.tolerance, problem.small)


def _check_element(problem: Problem, pairs: Pairs) -> None:
    """Order 0 of all that keep the loss: to rounding, and those that an epsilon breaks apart."""
    exact: list[list[Move]] = []
    near: list[list[Move]] = []
    tolerance = 0.0
    for symmetry, row in pairs:
        if row.status == "broken" or _moves_outputs(symmetry):
            continue
        if isinstance(symmetry, DiscreteSymmetry):
            exact.append(elements_of(symmetry, problem.generator))
            continue
        assert isinstance(symmetry, ContinuousSymmetry), "a symmetry is discrete or continuous"
        moves = proposed(problem, symmetry).moves
        (near if row.status == "approximate" else exact).append(moves)
        tolerance = max(tolerance, symmetry.tolerance if row.status == "approximate" else 0.0)
    for together, bound in ((exact, problem.small), (near, tolerance)):
        found = problem.along(together, bound)
        if max(found, default=0.0) > bound:
            raise Otherwise("the loss moves along an element that kept it")
