"""The edge of stability of the optimizer in use: which curvature its steps can bear.

An optimizer whose step is -eta P^-1 m(g), with m the momentum average, descends a quadratic stably
while the largest eigenvalue of P^-1/2 H P^-1/2 stays below c / eta. Scaling every parameter by its
own eta / (c P) makes that one number: the step is stable while lambda_max(S^1/2 H S^1/2) < 1.

    SGD         P = 1                                c = 2, with momentum b 2 + 2b (dampening d:
                                                     over 1 - d), Nesterov (2 + 2b) / (1 + 2b)
    Adam        P = sqrt(v / (1 - b2^t)) + eps       c = (2 + 2 b1) / (1 - b1), 38 for b1 = 0.9
    RMSprop     P = sqrt(v) + eps                    c as SGD
    Adagrad     P = sqrt(sum g^2) + eps              c = 2

References:
    Cohen et al. 2021 (arXiv 2103.00065); Cohen et al. 2022 (arXiv 2207.14484).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.snapshot import NotApplicable, ParameterGroup, Snapshot
from eqtoolbox.watch.threshold import threshold
from eqtoolbox.world.world import World

Rule = Callable[[ParameterGroup, dict[str, Any], Tensor], tuple[float, Tensor]]


def stability_scale(snapshot: Snapshot) -> Parameters:
    """S = eta / (c P) per parameter: steps are stable while lambda_max(S^1/2 H S^1/2) < 1.

    Zero for parameters that the optimizer does not move.

    Raises:
        NotApplicable: the rule of this optimizer is not known, it keeps no state yet, or it climbs.
    """
    if any(group.maximize for group in snapshot.groups):
        raise NotApplicable("the optimizer maximises: what its steps bear is the lowest curvature")
    rule = _rule(snapshot, "and Curvature(stability_scale=...) takes a rule of your own")
    scale = {}
    for name, parameter in snapshot.before.items():
        group = snapshot.group_of(name)
        if group is None:
            scale[name] = torch.zeros_like(parameter)
            continue
        c, preconditioner = _applied(rule, snapshot, name, group)
        scale[name] = group.lr / (c * preconditioner)
    return scale


def metric(snapshot: Snapshot, names: Iterable[str]) -> Parameters:
    """P of these parameters: the optimizer moves them by -eta P^-1 times its running gradient.

    Raises:
        NotApplicable: its metric is not known, or it keeps no state yet, or holds not all of them.
    """
    rule, found = _rule(snapshot, "whose metrics are diagonal"), {}
    for name in names:
        group = snapshot.group_of(name)
        if group is None:
            raise NotApplicable(f"{name} is in no group of the optimizer")
        found[name] = _applied(rule, snapshot, name, group)[1]
    return found


def _rule(snapshot: Snapshot, remedy: str) -> Rule:
    rule = RULES.get(snapshot.optimizer)
    if rule is None:
        why = NOT_DIAGONAL.get(snapshot.optimizer, "its stability threshold is not known")
        raise NotApplicable(f"{snapshot.optimizer}: {why}; known are {', '.join(RULES)}, {remedy}")
    return rule


def _applied(
    rule: Rule, snapshot: Snapshot, name: str, group: ParameterGroup
) -> tuple[float, Tensor]:
    """c and P of one parameter."""
    try:
        return rule(group, snapshot.state.get(name, {}), snapshot.before[name])
    except KeyError as missing:
        raise NotApplicable(
            f"{snapshot.optimizer} keeps no {missing} for {name} yet: measured after a step"
        ) from missing


def _sgd(group: ParameterGroup, state: dict[str, Any], p: Tensor) -> tuple[float, Tensor]:
    return threshold(group), torch.ones_like(p)


def _adam(group: ParameterGroup, state: dict[str, Any], p: Tensor) -> tuple[float, Tensor]:
    first, second = group.options["betas"]
    square = state["max_exp_avg_sq" if group.options.get("amsgrad") else "exp_avg_sq"]
    corrected = square / (1 - float(second) ** float(state["step"]))
    c = (2 + 2 * float(first)) / (1 - float(first))
    return c, corrected.sqrt() + group.options["eps"]


def _rmsprop(group: ParameterGroup, state: dict[str, Any], p: Tensor) -> tuple[float, Tensor]:
    square = state["square_avg"]
    if group.options.get("centered"):
        square = square - state["grad_avg"].square()
    return threshold(group), square.clamp_min(0).sqrt() + group.options["eps"]


def _adagrad(group: ParameterGroup, state: dict[str, Any], p: Tensor) -> tuple[float, Tensor]:
    slowing = 1 + (float(state["step"]) - 1) * float(group.options.get("lr_decay", 0.0))
    return 2.0 * slowing, state["sum"].sqrt() + group.options["eps"]


RULES: dict[str, Rule] = {
    "SGD": _sgd,
    "Adam": _adam,
    "AdamW": _adam,
    "RMSprop": _rmsprop,
    "Adagrad": _adagrad,
}


NOT_DIAGONAL = {
    "Muon": "it orthogonalises whole matrices, so no diagonal metric describes its steps",
    "LBFGS": "its metric is a matrix made of past steps, not a diagonal",
}


def momentum_buffer(snapshot: Snapshot) -> Parameters | None:
    """The optimizer's running average of gradients; None if it keeps none."""
    for key in ("momentum_buffer", "exp_avg"):
        found = {n: s[key] for n, s in snapshot.state.items() if isinstance(s.get(key), Tensor)}
        if found:
            return {n: found.get(n, torch.zeros_like(p)) for n, p in snapshot.before.items()}
    return None


def moving(scale: Parameters, world: World) -> tuple[Parameters, set[float]]:
    """What of a metric is positive, and the first numbers of it: on all ranks the same names."""
    still = {n for n, s in scale.items() if not bool((s > 0).all())}
    own = {float(s.flatten()[0]) for n, s in scale.items() if n not in still and s.numel()}
    shares = world.each("metric", (still, own))  # of shards each has its own
    still = set[str]().union(*(names for names, _ in shares))
    moved = {n: s for n, s in scale.items() if n not in still}
    return moved, set[float]().union(*(numbers for _, numbers in shares))
