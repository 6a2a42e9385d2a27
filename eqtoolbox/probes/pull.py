"""Pull: how an optimizer answers deviations from a symmetric point, beside the Hessian."""

from dataclasses import dataclass

import torch

from eqtoolbox.probes.stability import metric
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.snapshot import NotApplicable, ParameterGroup, Snapshot
from eqtoolbox.weights.orbit.reflection import Reflection

MEMORY = {"Adam", "AdamW", "RMSprop", "Adagrad"}  # whose metric is made of past gradients


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Deviations z from a symmetric point obey dz/dt = -(P^-1 (H + gamma) [+ gamma']) z.

    P is the optimizer's metric, gamma the decay in its gradient, gamma' decay beside it (AdamW's).
    In the coordinates P^1/2 z that is the symmetric P^-1/2 H P^-1/2 + decay, whose smallest
    eigenvalue is the margin: above 0 deviations shrink. Exchanged entries count with their mean P.

    P is taken as it is: valid where deviations move faster than P follows the units' own gradients,
    lr |margin| > 1 - beta2; where P keeps pace, it undoes what tells the units apart.
    """

    root: Parameters  # P^-1/2 in antisymmetric coordinates
    decay: Parameters  # gamma / P + gamma'

    @classmethod
    def of(cls, snapshot: Snapshot, reflection: Reflection) -> "tuple[Pull, str]":
        """Of this step's optimizer; with the reason where its metric is not known, and P = 1."""
        ones = {n: torch.ones_like(z) for n, z in reflection.coordinates(snapshot.before).items()}
        try:
            whole, why = metric(snapshot, reflection.names), ""
        except NotApplicable as reason:
            whole = {n: torch.ones_like(snapshot.before[n]) for n in reflection.names}
            why = str(reason)
        spread = reflection.embed(ones, snapshot.before)
        own = reflection.coordinates({n: p.to(spread[n]) * spread[n] for n, p in whole.items()})
        decay = {}
        for name, p in own.items():
            group = snapshot.group_of(name)
            gamma = group.weight_decay if group is not None else 0.0
            beside = group is not None and _decoupled(snapshot, group)
            decay[name] = torch.full_like(p, gamma) if beside else gamma / p
        return cls(root={n: p.rsqrt() for n, p in own.items()}, decay=decay), why

    def too_slow(self, snapshot: Snapshot, margin: float) -> str:
        """Why the margin says nothing: P follows the units sooner than they move; or nothing."""
        speeds = []
        for name in self.root:
            group = snapshot.group_of(name)
            if group is not None and snapshot.optimizer in MEMORY:
                steps = float(snapshot.state.get(name, {}).get("step", 1))
                speeds.append(max(_forgets(group), 1 / max(steps, 1.0)) / max(group.lr, 1e-300))
        fastest = max(speeds, default=0.0)
        if not speeds or abs(margin) > fastest:
            return ""
        return (
            f"the metric of {snapshot.optimizer} follows the units' own gradients as fast as they "
            f"would merge or part ({fastest:.2g} and {abs(margin):.2g} over the learning rate)"
        )


def _decoupled(snapshot: Snapshot, group: ParameterGroup) -> bool:
    return snapshot.optimizer == "AdamW" or bool(group.options.get("decoupled_weight_decay"))


def _forgets(group: ParameterGroup) -> float:
    """Share of the metric's memory that is lost a step; Adagrad's shrinks with its age."""
    if "betas" in group.options:
        return 1 - float(group.options["betas"][1])
    return 1 - float(group.options["alpha"]) if "alpha" in group.options else 0.0
