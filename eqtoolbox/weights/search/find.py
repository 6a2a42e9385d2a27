"""Search: parameter symmetries proposed from what a loss runs, confirmed by numbers."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from eqtoolbox.replay.widened import Widened
from eqtoolbox.weights.parameter import (
    ContinuousSymmetry,
    DiscreteSymmetry,
)
from eqtoolbox.weights.search.bias_shifts import propose_bias_shifts
from eqtoolbox.weights.search.compensations import propose_compensations
from eqtoolbox.weights.search.discrete import DiscreteSearch
from eqtoolbox.weights.search.equivariances import equivariances, tied_to_inputs
from eqtoolbox.weights.search.explanation import Trial, explained
from eqtoolbox.weights.search.found import Found
from eqtoolbox.weights.search.member import proposals
from eqtoolbox.weights.search.members import members
from eqtoolbox.weights.search.modules import propose_from_modules
from eqtoolbox.weights.search.problem import MovedInputs, Problem, Run, posed
from eqtoolbox.weights.search.translations import TranslationSearch
from eqtoolbox.weights.search.verification import (
    Loss,
    OutputLaw,
    Slopes,
    draw,
    gradients,
    judged,
    move,
)
from eqtoolbox.weights.tracing.propagation import EPSILON, LARGEST, Propagation

log = logging.getLogger(__name__)


def find_symmetries(
    loss: Loss,
    params: Mapping[str, Tensor],
    generator: torch.Generator | None = None,
    run: Run | None = None,
    dtype: torch.dtype | None = None,
    moved_inputs: MovedInputs | None = None,
    model: nn.Module | None = None,
) -> Found:
    """Parameter symmetries of `loss` at `params`, each with its verified status and residual.

    One evaluation is traced, the analyses propose from the trace, and each proposal is checked at
    a finite transformation and to first order (`search.verification`).

    Args:
        loss: params -> scalar.
        params: what may move; anything else is held fixed.
        generator: for the random elements; seeded with 0 unless given.
        run: params -> (output or None, loss), where the model's output is known: then also
            equivariances are looked for.
        moved_inputs: (params, map of the inputs) -> loss with the model's inputs so moved: then
            also what ties inputs to parameters is looked for.
        model: whose order of layers is looked at where the computation cannot be traced.
        dtype: that the loss is evaluated in; float64 makes the sharpest check. None: the
            parameters' own.

    Returns:
        Proposals with their status: look at it before use. A group that holds is not listed again
        within a larger one. `notes` say what was not analysed.

    Raises:
        ValueError: the loss itself cannot be evaluated, or is not finite.
    """
    with Widened() if dtype == torch.float64 else nullcontext():
        problem = posed(loss, params, generator, run, dtype)
        continuous, discrete, state = _found(problem, model, LARGEST)
        if state.taken and any(s.status == "broken" and s.tolerance for s in continuous):
            # no epsilons after all: what is exact beside them must not be lost
            continuous, discrete, state = _found(problem, model, EPSILON)
        pinned = state.pinned.joined(discrete.pinned)
        notes = [*problem.trace.notes, *pinned.notes(), *_unseen(state)]
        tied = tied_to_inputs(problem, moved_inputs) if moved_inputs is not None else ()
        every = [*continuous, *equivariances(problem), *tied, *discrete.holding(continuous)]
    for note in notes:
        log.info("symmetries: %s", note)
    return Found(every, notes)


def _found(
    problem: Problem, model: nn.Module | None, largest: float
) -> tuple[list[ContinuousSymmetry], DiscreteSearch, Propagation]:
    """Continuous and discrete symmetries with constants up to `largest` as epsilons."""
    found, state = members(problem.trace, largest=largest)
    chains = [trials for _, trials in proposals(found)]
    listed: list[DiscreteSymmetry] = []
    if not problem.trace.nodes and model is not None:
        inspected = list(propose_from_modules(model))
        chains = [[s] for s in inspected if isinstance(s, ContinuousSymmetry)]
        listed = [s for s in inspected if isinstance(s, DiscreteSymmetry)]
    discrete = DiscreteSearch(problem, chains, listed)
    return _continuous(problem, chains, discrete.covariance), discrete, state


def _unseen(state: Propagation) -> Iterator[str]:
    """What the analysis took for fixed, in sentences."""
    if state.constants:
        numbers = ", ".join(f"{v:g}" for v in sorted(state.constants))
        yield (
            f"{numbers} added before a root or a division: too large for the epsilon of a "
            "normalisation, which would leave approximate scale symmetries, and so taken for a "
            "part of the function"
        )


def _continuous(
    problem: Problem, chains: list[list[ContinuousSymmetry]], covariance: OutputLaw
) -> list[ContinuousSymmetry]:
    """Symmetries of the loss: of every member the largest group that holds, then shifts."""
    flat = [trial for trials in chains for trial in trials]
    drawn = [draw(s, problem.value, problem.generator) for s in flat]
    slopes, shifts = Slopes(flat, drawn), TranslationSearch(problem.trace)

    def receive(params: Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> None:
        slopes.add(params, gradient)
        shifts.add(gradient)
        covariance.add(gradient)

    gradients(problem.loss, problem.point, receive)
    first = dict(zip(map(id, flat), slopes.residuals(), strict=True))
    moved = dict(zip(map(id, flat), drawn, strict=True))
    flatly = list(shifts.proposals())
    common = {t.name for s in flatly for t in s.shifts if t.cut is not None and t.cut[1:] == (1, 1)}
    constant: list[ContinuousSymmetry] = [
        *flatly,
        *propose_bias_shifts(problem.trace, problem.point, shifts.vectors),
        *propose_compensations(shifts.in_order(shifts.columns), problem.point.shapes, common),
    ]
    for s in constant:  # the gradient proposed them: order 1 holds
        first[id(s)], moved[id(s)] = 0.0, draw(s, problem.value, problem.generator)
    chains = [*chains, *([s] for s in constant)]
    chosen: dict[int, ContinuousSymmetry] = {}
    elements: dict[int, ContinuousSymmetry] = {}
    while any(chains):  # in each round the largest group left of every undecided member
        trials = [(k, chain[0]) for k, chain in enumerate(chains) if chain]
        checked = _checked(problem, [(s, moved[id(s)], first[id(s)]) for _, s in trials])
        for (k, tried), symmetry in zip(trials, checked, strict=True):
            chosen[k], elements[k] = symmetry, tried
            chains[k] = chains[k][1:] if symmetry.status == "broken" else []
    where = {id(s): n for n, s in enumerate(flat)}
    near = {
        k: where[id(elements[k])]
        for k, s in chosen.items()
        if s.status == "approximate" and id(elements[k]) in where
    }
    asked = [Trial(chosen[k], drawn[n], slopes.dots[n], slopes.scale(n)) for k, n in near.items()]
    answers = explained(problem.loss, problem.point, problem.value, asked)
    chosen.update(zip(near, answers, strict=True))
    members_found = len(chains) - len(constant)  # a shift that fails is no news
    return [s for k, s in sorted(chosen.items()) if k < members_found or s.status != "broken"]


def _checked(
    problem: Problem, tried: Sequence[tuple[ContinuousSymmetry, Tensor, float]]
) -> list[ContinuousSymmetry]:
    """Each (symmetry, coefficients, residual of order 1) judged with order 0 at c and -c.

    Exact ones are tried together; those that may only be approximate alone, and at c.
    """
    worst = {k: order_1 for k, (_, _, order_1) in enumerate(tried)}
    exact = [k for k in worst if worst[k] <= problem.small]
    near = [k for k in worst if problem.small < worst[k] <= tried[k][0].tolerance]
    for together in (exact, *([k] for k in near)):
        moves = [
            [move(s, s.flow(sign * c)) for sign in ((1, -1) if together is exact else (1,))]
            for s, c, _ in (tried[k] for k in together)
        ]
        for k, order_0 in zip(together, problem.changes(moves), strict=True):
            worst[k] = max(worst[k], order_0)
    dtype = problem.value.dtype
    return [judged(s, worst[k], dtype) for k, (s, _, _) in enumerate(tried)]
