"""What the epsilons of normalisations predict of approximate laws, along elements of families.

g . K = p and H K + (DK)^T g = grad p with p = - sum_k r_k dL/dlog(eps_k): see
`eqtoolbox.weights.epsilon`. The rates r of an element do not depend on the parameters.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from eqtoolbox.linalg.graph import differentiating, filled
from eqtoolbox.linalg.vectors import add, add_to, zeros_like
from eqtoolbox.probes.law import Bias, Elements, Members
from eqtoolbox.record.record import verdict
from eqtoolbox.replay.gradients import leaf
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import NotApplicable
from eqtoolbox.weights.epsilon import Epsilons, at_factors, moved_along, observed, prediction
from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search.moves import move, moved

STEP = 0.3  # largest coefficient of the finite transformation that tells the rates

Rates = list[list[Tensor]]  # r of every epsilon, for every loss of the objective


def approximate(families: Members) -> dict[str, Sequence[ContinuousSymmetry]]:
    """The families with a member that holds only approximately."""
    return {
        family: members
        for family, members in families.items()
        if any(m.status == "approximate" for m in members)
    }


def rates(
    objective: Objective, params: Parameters, families: Members, elements: Elements
) -> dict[str, Rates]:
    """How fast each family's element scales what every epsilon is added to.

    Raises:
        NotApplicable: no epsilon is seen, or the computation takes another course.
    """
    found: dict[str, Rates] = {family: [] for family in families}
    for part, _ in objective.terms:
        base = observed(part.loss, dict(params))
        if not base:
            raise NotApplicable("no epsilon is seen: the normalisations are not torch's own")
        for family, members in families.items():
            largest = max(float(c.abs().max()) for c in elements[family])
            s = STEP / max(largest, 1e-300)
            steps = [
                move(m, m.flow((s * c).to(params[m.names[0]])))
                for m, c in zip(members, elements[family], strict=True)
            ]
            try:
                _, factors = moved_along(part.loss, moved(params, steps), base)
            except (LookupError, RuntimeError) as reason:
                raise NotApplicable(str(reason)) from reason
            found[family].append([f.log() / s for f in factors])
    return found


def predictions(
    objective: Objective,
    params: Parameters,
    rates: dict[str, Rates],
    kept: list[list[Tensor]] | None = None,
) -> dict[str, Bias]:
    """p and grad p of every family; dL/dlog(eps) of every loss goes into `kept`.

    Raises:
        NotApplicable: the loss cannot be differentiated with a tensor for its epsilons.
    """
    leaves = {n: leaf(p.detach()) for n, p in params.items()}
    value, total = dict.fromkeys(rates, 0.0), dict[str, dict[str, Tensor]]()
    try:
        for k, (part, weight) in enumerate(objective.terms):
            with differentiating(part, leaves):
                slopes = _log_slopes(part, leaves)
                if kept is not None:
                    kept.append([s.detach() for s in slopes])
                for family, own in rates.items():
                    p = weight * part.total(prediction(slopes, own[k]))
                    value[family] += float(p.detach())
                    if p.requires_grad:
                        rows = torch.autograd.grad(
                            p, list(leaves.values()), retain_graph=True, allow_unused=True
                        )
                        slope = filled(leaves, rows)
                        total[family] = add(total[family], slope) if family in total else slope
    except RuntimeError as reason:
        raise NotApplicable(f"no derivative with respect to epsilon: {reason}") from reason
    return {f: Bias(value[f], total[f] if f in total else zeros_like(params)) for f in rates}


def _log_slopes(objective: Objective, leaves: dict[str, Tensor]) -> list[Tensor]:
    """dL/dlog(eps), in the graph of the parameters."""
    ones: list[Tensor] = []

    def leaf(_: int, amount: Tensor, __: float) -> Tensor:
        ones.append(torch.ones_like(amount).requires_grad_())
        return ones[-1]

    with Epsilons(leaf):
        loss = objective.loss(leaves)
    return list(
        torch.autograd.grad(
            loss, ones, create_graph=True, allow_unused=True, materialize_grads=True
        )
    )


def _ratios(objective: Objective, leaves: dict[str, Tensor]) -> list[Tensor]:
    """a_k over its own value, in the graph, while every epsilon scales as its a_k does."""
    found: list[Tensor] = []

    def ratio(_: int, amount: Tensor, eps: float) -> Tensor:
        value, least = amount.detach(), torch.finfo(amount.dtype).eps * abs(eps)
        usable = value.abs() > least
        safe = torch.where(usable, value, 1.0)
        found.append(torch.where(usable, amount, 1.0) / safe)
        return found[-1]

    with Epsilons(ratio, live=True):
        objective.loss(leaves)
    return found


def pull(
    objective: Objective, params: Parameters, slopes: Sequence[Sequence[Tensor]]
) -> Parameters:
    """What epsilons make of the gradient: q with <K, q> = p for every generator K at once.

    A generator scales what the k-th epsilon is added to, a_k, at the rate r_k = <K, grad log a_k>,
    every epsilon scaled as its a_k. So q = - sum_k dL/dlog(eps_k) grad log a_k, and g - q obeys the
    laws that epsilon breaks.

    Args:
        objective, params: the loss and where it is differentiated.
        slopes: dL/dlog(eps) there of every loss of the objective, from `predictions`.

    Raises:
        NotApplicable: the loss cannot be differentiated with a tensor for its epsilons.
    """
    leaves = {n: leaf(p.detach()) for n, p in params.items()}
    total = zeros_like(params)
    try:
        for (part, weight), own in zip(objective.terms, slopes, strict=True):
            with differentiating(part, leaves):
                terms = zip(own, _ratios(part, leaves), strict=True)
                moving = [(s * a.log()).sum() for s, a in terms if a.requires_grad]
                if moving:
                    rows = torch.autograd.grad(
                        torch.stack(moving).sum(), list(leaves.values()), allow_unused=True
                    )
                    add_to(total, filled(leaves, rows), -weight)
    except RuntimeError as reason:
        raise NotApplicable(f"no derivative with respect to epsilon: {reason}") from reason
    return total


def total_rates(rates: Sequence[Rates]) -> Rates:
    """The rates of the sum of elements."""
    parts = zip(*rates, strict=True)
    return [[torch.stack(r).sum(0) for r in zip(*of_part, strict=True)] for of_part in parts]


def instead(
    objective: Objective, params: Parameters, rates: Rates, s: float
) -> Iterator[tuple[float, Tensor]]:
    """Each weighted loss at e^(-r s) eps, which is that at T_s theta where epsilon explains it."""
    for (part, weight), own in zip(objective.terms, rates, strict=True):
        with torch.no_grad():
            yield weight, at_factors(part.loss, dict(params), [(-s * r).exp() for r in own])


def explained(
    family: str, slope: float, p: float, length: float, floor: float
) -> Iterator[Measurement]:
    """g . K measured and predicted, and what epsilon leaves unexplained, all over |g| |K|.

    Args:
        slope: g . K, less c for an equivariance.
        p: its prediction.
        length: |g| |K|.
        floor: rounding of g . K over `length`.
    """
    left = abs(slope - p) / length
    note = f"g.K {slope / length:.3e} measured, {p / length:.3e} predicted by epsilon"
    yield Measurement("slope", slope / length, family, floor=floor)
    yield Measurement("predicted_slope", p / length, family)
    yield Measurement("epsilon", left, family, floor=floor, verdict=verdict(left, floor), note=note)
