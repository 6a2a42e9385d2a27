"""SGD: the rates that closed forms need, of the optimizer's step for a family of symmetries."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from eqtoolbox.watch.snapshot import NotApplicable, ParameterGroup, Snapshot


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """SGD with coupled decay and heavy-ball momentum, alike for all parameters in question."""

    lr: float
    decay: float
    momentum: float


def sgd(snapshot: Snapshot, names: Iterable[str]) -> Sgd:
    """The rates of the step for these parameters.

    Raises:
        NotApplicable: another optimizer, or rates that differ; the message says which.
    """
    if snapshot.optimizer != "SGD":
        raise NotApplicable(f"{snapshot.optimizer}: the closed forms are those of SGD")
    groups = [snapshot.group_of(n) for n in names]
    known = {_rates(g) for g in groups if g is not None}
    if not known or any(g is None for g in groups):
        raise NotApplicable("a parameter that the symmetry moves is in no group of the optimizer")
    if len(known) > 1:
        raise NotApplicable("the parameters that the symmetry moves learn at different rates")
    lr, decay, momentum, dampening, special = known.pop()
    if special or (momentum and dampening):
        kind = special or "dampening"
        raise NotApplicable(f"SGD with {kind}: the closed forms are those of heavy-ball momentum")
    if math.isnan(lr):
        raise NotApplicable("the optimizer has no learning rate")
    return Sgd(lr=lr, decay=decay, momentum=momentum)


def _rates(group: ParameterGroup) -> tuple[float, float, float, float, str]:
    special = "maximize" if group.maximize else "Nesterov's momentum" if group.nesterov else ""
    dampening = float(group.options.get("dampening", 0.0))
    return group.lr, group.weight_decay, group.momentum, dampening, special
