"""Search: parameter symmetries proposed from what a loss runs, confirmed by numbers."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from eqtoolbox.symmetry.families.bias_shift import propose_bias_shifts
from eqtoolbox.symmetry.families.compensation import propose_compensations
from eqtoolbox.symmetry.families.discrete import (
    propose_heads,
    propose_permutations,
    propose_sign_flips,
)
from eqtoolbox.symmetry.families.experts import propose_experts
from eqtoolbox.symmetry.families.general_linear import MatrixSymmetry
from eqtoolbox.symmetry.families.head import propose_head
from eqtoolbox.symmetry.families.input_rotation import propose_input_rotation
from eqtoolbox.symmetry.families.translation import TranslationSearch
from eqtoolbox.symmetry.parameter import (
    ContinuousSymmetry,
    DiscreteSymmetry,
)
from eqtoolbox.symmetry.search.found import Found
from eqtoolbox.symmetry.search.homogeneous import propose_homogeneity
from eqtoolbox.symmetry.search.members import members, proposals
from eqtoolbox.symmetry.search.modules import propose_from_modules
from eqtoolbox.symmetry.search.point import Point
from eqtoolbox.symmetry.search.precision import FullPrecision
from eqtoolbox.symmetry.search.trace import Trace, trace, untraced
from eqtoolbox.symmetry.search.verification import (
    Covariance,
    Loss,
    Move,
    Slopes,
    draw,
    evaluated,
    gradients,
    joint_changes,
    judged,
    limit,
    move,
)

log = logging.getLogger(__name__)
Run = Callable[[dict[str, Tensor]], tuple[Tensor | None, Tensor]]
MovedInputs = Callable[[dict[str, Tensor], Callable[[Tensor], Tensor]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A loss at one point with all that proposals are checked against."""

    loss: Loss
    outputs: Loss | None  # the model's output, where it is a single tensor
    point: Point
    value: Tensor
    trace: Trace = field(repr=False)
    generator: torch.Generator = field(repr=False)

    @property
    def small(self) -> float:
        return limit(self.value.dtype)

    def changes(self, moves: Sequence[Sequence[Move]]) -> list[float]:
        """Relative change of the loss under each proposal's moves."""
        return joint_changes(self.loss, self.point, moves, self.value, self.small)


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
    with FullPrecision() if dtype == torch.float64 else nullcontext():
        problem = _problem(loss, params, generator, run, dtype)
        found, unknown = members(problem.trace)
        notes = list(problem.trace.notes)
        chains = [trials for _, trials in proposals(found)]
        listed: list[DiscreteSymmetry] = []
        if not problem.trace.nodes and model is not None:
            inspected = list(propose_from_modules(model))
            chains = [[s] for s in inspected if isinstance(s, ContinuousSymmetry)]
            listed = [s for s in inspected if isinstance(s, DiscreteSymmetry)]
        if unknown:
            notes.append(
                f"no rule for {', '.join(sorted(unknown))}: what these operations read was "
                "taken as fixed, so that symmetries through them are missed"
            )
        discrete = Discrete(problem, chains, listed)
        continuous = _continuous(problem, chains, discrete.covariance)
        tied = _joint(problem, moved_inputs) if moved_inputs is not None else ()
        every = [*continuous, *_equivariances(problem), *tied, *discrete.holding(continuous)]
    for note in notes:
        log.info("symmetries: %s", note)
    return Found(every, notes)


def _problem(
    loss: Loss,
    params: Mapping[str, Tensor],
    generator: torch.Generator | None,
    run: Run | None,
    dtype: torch.dtype | None,
) -> Problem:
    point = Point(params, dtype)
    run = run or (lambda p: (None, loss(p)))
    try:
        traced = trace(run, point)
    except Exception as error:
        # whatever a model's own code raises under the recorder; the loss itself must run
        traced = untraced(point, evaluated(loss, point))
        traced.notes.append(
            f"the computation could not be recorded ({type(error).__name__}: {error}): only the "
            "order of layers in nn.Sequential and what the gradient shows were analysed"
        )
    if not bool(traced.value.isfinite().all()):
        raise ValueError(
            f"expected a finite loss, got {float(traced.value)}: look for NaN or infinite numbers "
            "in the batch and in the parameters"
        )
    outputs: Loss | None = None
    if traced.output is not None:
        outputs = partial(_output, run)
    return Problem(
        loss=loss,
        outputs=outputs,
        point=point,
        value=traced.value,
        trace=traced,
        generator=generator or torch.Generator().manual_seed(0),
    )


def _output(run: Run, params: dict[str, Tensor]) -> Tensor:
    output = run(params)[0]
    assert output is not None
    return output


def _continuous(
    problem: Problem, chains: list[list[ContinuousSymmetry]], covariance: Covariance
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
    last = {name: len(shape) - 1 for name, shape in problem.point.shapes.items()}
    common = {t.name for s in flatly for t in s.shifts if t.count == 1 and t.axis == last[t.name]}
    constant: list[ContinuousSymmetry] = [
        *flatly,
        *propose_bias_shifts(problem.trace, problem.point, shifts.vectors),
        *propose_compensations(shifts.in_order(shifts.columns), problem.point.shapes, common),
    ]
    for s in constant:  # the gradient proposed them: order 1 holds
        first[id(s)], moved[id(s)] = 0.0, draw(s, problem.value, problem.generator)
    chains = [*chains, *([s] for s in constant)]
    chosen: dict[int, ContinuousSymmetry] = {}
    while any(chains):  # in each round the largest group left of every undecided member
        trials = [(k, chain[0]) for k, chain in enumerate(chains) if chain]
        checked = _checked(problem, [(s, moved[id(s)], first[id(s)]) for _, s in trials])
        for (k, _), symmetry in zip(trials, checked, strict=True):
            chosen[k] = symmetry
            chains[k] = chains[k][1:] if symmetry.status == "broken" else []
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


def _equivariances(problem: Problem) -> Iterator[ContinuousSymmetry]:
    """Transformations that move the outputs in a known way; orders 0 and 1 of f, not of the loss.

    order 0: |f(T_c theta) - R_c f| / |f|; order 1: |u . (J K - rho)| / (|J^T u| |K| + |u| |rho|)
    for a random u.
    """
    head = list(propose_head(problem.trace))
    names = [set(s.names) for s in head]
    whole = [s for s in propose_homogeneity(problem.trace) if set(s.names) not in names]
    proposed: list[ContinuousSymmetry] = [*whole, *head]
    outputs, point = problem.outputs, problem.point
    if outputs is None or not proposed:
        return
    y = evaluated(outputs, point)
    u = torch.randn(y.shape, generator=problem.generator, dtype=torch.float64).to(y)
    drawn = [draw(s, y, problem.generator) for s in proposed]
    slopes = Slopes(proposed, drawn)
    gradients(lambda p: (u * outputs(p)).sum(), point, slopes.add)
    turned = [s.rho(y, c) for s, c in zip(proposed, drawn, strict=True)]
    against = [(float((u * r).sum()), float(u.norm() * r.norm())) for r in turned]
    first = slopes.residuals(against)
    for symmetry, c, order_1 in zip(proposed, drawn, first, strict=True):
        there = evaluated(outputs, point, [move(symmetry, symmetry.flow(c))])
        defect = (there - symmetry.transform_outputs(y, c)).norm() / y.norm().clamp_min(1e-300)
        checked = judged(symmetry, max(order_1, float(defect)), y.dtype)
        if checked.status != "broken":
            yield checked


def _joint(problem: Problem, moved_inputs: MovedInputs) -> Iterator[ContinuousSymmetry]:
    """Parameters and inputs moved together, the loss unchanged.

    order 0: |L(T_c theta, S_c x) - L| / |L|; order 1: |g . K + <dL/dx, X>| over the larger term,
    X the inputs' tangent; the second term is the derivative along x + s X.
    """
    for symmetry in propose_input_rotation(problem.trace):
        c = draw(symmetry, problem.value, problem.generator)
        turned = partial(symmetry.transform_inputs, coefficients=c)
        try:
            there = evaluated(
                partial(_loss_of, moved_inputs, turned),
                problem.point,
                [move(symmetry, symmetry.flow(c))],
            )
        except RuntimeError:  # not the model's first argument
            continue
        order_0 = float((there - problem.value).abs() / problem.value.abs().clamp_min(1e-300))
        s = torch.zeros((), dtype=problem.value.dtype, requires_grad=True)
        leaves = {n: p.detach() for n, p in problem.point.items()}
        leaves |= {n: leaves[n].clone().requires_grad_() for n in symmetry.names}
        loss = moved_inputs(leaves, partial(_along, symmetry, c, s))
        wanted = [s, *(leaves[n] for n in symmetry.names)]
        slope, *own = torch.autograd.grad(loss, wanted, materialize_grads=True)
        tangent = symmetry.tangent(problem.point, c)
        pairs = zip(symmetry.names, own, strict=True)
        along = sum(float((g * tangent[n]).sum()) for n, g in pairs)
        order_1 = abs(along + float(slope)) / max(abs(along), abs(float(slope)), 1e-300)
        checked = judged(symmetry, max(order_0, order_1), problem.value.dtype)
        if checked.status != "broken":
            yield checked


class Discrete:
    """Permutations and sign flips: proposed and tried before the gradient comes, judged after."""

    def __init__(
        self,
        problem: Problem,
        chains: Sequence[Sequence[ContinuousSymmetry]],
        listed: Sequence[DiscreteSymmetry],
    ) -> None:
        self.problem = problem
        first = [c[0] for c in chains if c and isinstance(c[0], MatrixSymmetry)]
        mixed = [set(m.names) for m in first if m.family != "rope"]
        every: list[DiscreteSymmetry] = [
            *listed,
            *propose_heads(first),
            *propose_experts(problem.trace),
            *propose_permutations(members(problem.trace, "label")[0]),
            *propose_sign_flips(members(problem.trace, "sign")[0]),
        ]
        inside = [set(s.names) in mixed and not getattr(s, "whole_heads", False) for s in every]
        self.proposed = [s for s, within in zip(every, inside, strict=True) if not within]
        self.deferred = [s for s, within in zip(every, inside, strict=True) if within]
        moves = [_elements(s, problem.generator) for s in self.proposed]
        self.changes = problem.changes(moves)
        whole = problem.point.whole  # else a piece may lack what is exchanged
        passed = [
            m[0]
            for m, c in zip(moves, self.changes, strict=True)
            if c <= problem.small and (m[0].separable or whole)
        ]
        self.covariance = Covariance(passed)

    def holding(self, continuous: list[ContinuousSymmetry]) -> Iterator[DiscreteSymmetry]:
        """Those that hold and are in none of the larger groups found."""
        larger = [s for s in continuous if isinstance(s, MatrixSymmetry) and s.status != "broken"]
        covered = [set(s.names) for s in larger if s.family != "rope"]
        turned = [set(s.names) for s in larger if s.family == "rope"]  # half a turn flips the sign
        problem = self.problem
        if self.covariance.elements:
            elements = self.covariance.elements
            gradients(problem.loss, problem.point, self.covariance.compare, elements)
        for proposal, order_0 in zip(self.proposed, self.changes, strict=True):
            own = set(proposal.names)
            if order_0 > problem.small or (proposal.family == "sign_flip" and own in turned):
                continue
            worst = max(order_0, self.covariance.residual(proposal.names))
            checked = judged(proposal, worst, problem.value.dtype)
            if checked.status != "broken":
                yield checked
        # units within a larger group that did not hold: order 0 alone
        left = [s for s in self.deferred if set(s.names) not in covered]
        changes = problem.changes([_elements(s, problem.generator) for s in left])
        for proposal, order_0 in zip(left, changes, strict=True):
            checked = judged(proposal, order_0, problem.value.dtype)
            if checked.status != "broken":
                yield checked


def _loss_of(
    moved_inputs: MovedInputs, turned: Callable[[Tensor], Tensor], params: dict[str, Tensor]
) -> Tensor:
    return moved_inputs(params, turned)


def _along(symmetry: ContinuousSymmetry, c: Tensor, s: Tensor, inputs: Tensor) -> Tensor:
    return inputs + s * symmetry.tangent_inputs(inputs, c)


def _elements(symmetry: DiscreteSymmetry, generator: torch.Generator) -> list[Move]:
    """A random element g, and g after the first generating element.

    A subgroup with both has that generating element: no parity hides.
    """
    drawn = symmetry.draw(generator)

    def after_first(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return drawn({**params, **symmetry.element(params, 0)})

    return [move(symmetry, drawn), move(symmetry, after_first)]
