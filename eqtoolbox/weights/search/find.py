"""Search: parameter symmetries proposed from what a loss runs, confirmed by numbers."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from eqtoolbox.replay.gradients import at_leaves
from eqtoolbox.replay.heap import uncollected
from eqtoolbox.replay.thread.scope import unobserved
from eqtoolbox.weights.parameter import ContinuousSymmetry, DiscreteSymmetry
from eqtoolbox.weights.search.again import Otherwise, again
from eqtoolbox.weights.search.clipped import unclipped
from eqtoolbox.weights.search.discrete import DiscreteProposals, DiscreteSearch
from eqtoolbox.weights.search.enough import Divisible, on_few
from eqtoolbox.weights.search.equivariances import equivariances
from eqtoolbox.weights.search.first_layers import propose_input_rotation
from eqtoolbox.weights.search.found import Found, KnownSymmetries, structure_of
from eqtoolbox.weights.search.head import propose_head
from eqtoolbox.weights.search.homogeneous import propose_homogeneity
from eqtoolbox.weights.search.inert import apart, exchanged, looked_at_elsewhere
from eqtoolbox.weights.search.joint import candidate, judged_together, proposed
from eqtoolbox.weights.search.member import proposals
from eqtoolbox.weights.search.members import each_member
from eqtoolbox.weights.search.modules import propose_from_modules
from eqtoolbox.weights.search.problem import MovedInputs, Problem, Run, posed
from eqtoolbox.weights.search.shifts import propose_shifts, sift
from eqtoolbox.weights.search.slopes import Slopes
from eqtoolbox.weights.search.translations import TranslationSearch
from eqtoolbox.weights.search.turned import TurnedSearch
from eqtoolbox.weights.search.verification import Loss
from eqtoolbox.weights.tracing.ghost import ghost_trace
from eqtoolbox.weights.tracing.propagation import EPSILON, LARGEST, Propagation
from eqtoolbox.weights.tracing.trace import Trace, trace

log = logging.getLogger(__name__)


def find_symmetries(
    loss: Loss,
    params: Mapping[str, Tensor],
    generator: torch.Generator | None = None,
    run: Run | None = None,
    dtype: torch.dtype | None = None,
    moved_inputs: MovedInputs | None = None,
    model: nn.Module | None = None,
    known: KnownSymmetries | None = None,
    statistics: Mapping[str, Tensor] | None = None,
    larger: bool = False,
    samples: Divisible | None = None,
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
        known: what was found before: for the same computation it is only confirmed.
        dtype: that the loss is evaluated in; float64 makes the sharpest check. None: the
            parameters' own.
        statistics: running ones that `loss` and `run` take among params, else as they are: they
            move along with channels that are exchanged.
        larger: whether `loss` is over more samples than `run` evaluates, as where several
            processes have a share each.
        samples: of the batch, where it can be cut: then few of them say, of a large model, what
            fails and what epsilons explain.

    Returns:
        Proposals with their status: look at it before use. A group that holds is not listed again
        within a larger one. `notes` say what was not analysed.

    Raises:
        ValueError: the loss itself cannot be evaluated, or is not finite.
    """
    problem = posed(loss, params, generator, run, dtype, statistics, moved_inputs, larger)
    if known is not None:
        try:
            return again(problem, known, samples)
        except Otherwise as reason:
            log.info("symmetries: looked for anew: %s", reason)
    largest = LARGEST
    shown = _shown(problem, model, LARGEST)
    problem = on_few(problem, samples)
    turned = TurnedSearch(problem)
    continuous, inert = _continuous(problem, shown, turned)
    if shown.state.taken and any(s.status == "broken" and s.tolerance for s in continuous):
        # no epsilons after all: what is exact beside them must not be lost
        largest = EPSILON
        shown = _shown(problem, model, EPSILON)
        continuous, inert = _continuous(problem, shown, turned)
    pinned = shown.state.pinned.joined(shown.discrete.pinned)
    notes = [*problem.trace.notes, *pinned.notes(), *_unseen(shown.state), *inert]
    notes += [] if shown.slopes.finite else [_NOT_FINITE]
    moving_inputs = turned.holding()
    discrete = shown.discrete.holding(problem, continuous)
    every = [*continuous, *equivariances(problem), *moving_inputs, *discrete]
    for note in notes:
        log.info("symmetries: %s", note)
    structure, varied = structure_of(problem.trace), problem.varied
    return Found(exchanged(every), notes, structure, largest, varied)


@uncollected()
def propose_symmetries(
    run: Run, params: Mapping[str, Tensor], statistics: Mapping[str, Tensor] | None = None
) -> Found:
    """What one trace shows, without a check and without the parameters' numbers.

    Nothing of the parameters' size is made, and they may be on meta, unless the computation looks
    at numbers that depend on them.

    Args:
        run: params -> (output or None, loss).
        params: what may move; anything else is held fixed.
        statistics: see `find_symmetries`.

    Returns:
        Proposals, of every member the largest group; `notes` say what was not analysed.

    Raises:
        ValueError: the computation needs numbers, and parameters are on meta.
    """
    traced = without_numbers(run, params, statistics or {})
    found, state = each_member(traced)
    chains = [trials for _, trials in proposals(found)]
    pinned, unseen = state.pinned, [*_unseen(state)]
    del found, state  # before the next analysis makes as much
    discrete = DiscreteProposals(traced, chains)
    every = [
        *(trials[0] for trials in chains),
        *propose_homogeneity(traced),
        *propose_head(traced),
        *propose_input_rotation(traced),
        *discrete.proposed,
    ]
    pinned = pinned.joined(discrete.pinned)
    return Found(every, [*traced.notes, *pinned.notes(), *unseen, _UNVERIFIED])


_UNVERIFIED = (
    "proposed from the computation alone: nothing was verified, and translations, compensations "
    "and bias shifts, which gradients propose, were not looked for"
)


_NOT_FINITE = (
    "the gradient is not finite where the loss is, as of a root in a branch that is not taken: "
    "symmetries of parameters that have it count as broken, and their shifts are not looked for"
)


def without_numbers(
    run: Run, params: Mapping[str, Tensor], statistics: Mapping[str, Tensor]
) -> Trace:
    """A ghost trace, or a real one where the computation needs numbers."""
    try:
        return ghost_trace(run, params, statistics)
    except Exception as error:  # whatever a model's own code raises where it finds no numbers
        if any(p.is_meta for p in params.values()):
            raise ValueError(
                f"the computation cannot be followed without numbers ({error}): give parameters "
                "that are not on meta"
            ) from error
        log.info("symmetries: traced with numbers: %s", error)
    return trace(partial(at_leaves, run, fixed=statistics.keys()), params, statistics)


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What the trace proposes, of every member the largest group first, and the gradient's part."""

    chains: list[list[ContinuousSymmetry]]
    slopes: Slopes  # of all of them
    shifts: TranslationSearch
    discrete: DiscreteSearch
    state: Propagation


def _shown(problem: Problem, model: nn.Module | None, largest: float) -> _Shown:
    """The analysis with constants up to `largest` as epsilons, and the gradient."""
    with unobserved(), uncollected():
        found, state = each_member(problem.trace, largest=largest)
        chains = [trials for _, trials in proposals(found)]
        listed: list[DiscreteSymmetry] = []
        if not problem.trace.nodes and model is not None:
            inspected = list(propose_from_modules(model))
            chains = [[s] for s in inspected if isinstance(s, ContinuousSymmetry)]
            listed = [s for s in inspected if isinstance(s, DiscreteSymmetry)]
        proposed_units = DiscreteProposals(problem.trace, chains, listed)
    discrete = DiscreteSearch(problem, proposed_units)
    slopes = Slopes([trial for trials in chains for trial in trials], lit=True)
    shifts = TranslationSearch.of(problem.trace)

    @unobserved()
    def receive(params: Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> None:
        slopes.add(params, gradient)
        shifts.add(gradient)
        discrete.covariance.add(gradient)

    problem.gradient(receive)
    looked_at_elsewhere(problem, slopes)
    return _Shown(chains=chains, slopes=slopes, shifts=shifts, discrete=discrete, state=state)


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
    problem: Problem, shown: _Shown, turned: TurnedSearch
) -> tuple[list[ContinuousSymmetry], list[str]]:
    """Symmetries of the loss: of every member the largest group that holds, then shifts; notes."""
    slopes, discrete = shown.slopes, shown.discrete
    members_found = len(shown.chains)
    sift(problem, shown.shifts)
    with unobserved():
        candidates = iter([candidate(problem, slopes, k) for k in range(len(slopes.symmetries))])
        waiting = [[next(candidates) for _ in trials] for trials in shown.chains]
        flatly = [proposed(problem, s) for s in propose_shifts(problem, shown.shifts)]
    waiting += [[c] for c in unclipped(problem, flatly, [c for chain in waiting for c in chain])]
    chosen: dict[int, list[ContinuousSymmetry]] = {}
    # in each round the largest group left of every undecided member
    while any(waiting) or discrete.waiting:
        trials = [(k, chain[0]) for k, chain in enumerate(waiting) if chain]
        tried = [c for _, c in trials]
        judged, changes = judged_together(problem, tried, discrete.waiting, turned)
        if discrete.waiting:
            discrete.tried(changes)
        for (k, one), symmetry in zip(trials, judged, strict=True):
            chosen[k] = list(apart(symmetry, one.inert))
            waiting[k] = waiting[k][1:] if symmetry.status == "broken" else []
    # a shift that fails is no news
    each = [(k, s) for k, parts in sorted(chosen.items()) for s in parts]
    found = [s for k, s in each if k < members_found or s.status != "broken"]
    names = {(s.family, s.name) for s in found if s.status == "inert"}
    said = [note for key, note in slopes.inert_notes() if key in names]
    return found, [*said, *shown.shifts.notes()]
