"""Balance: how far scale-symmetric weights are from where decay and gradient hold their norm."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from eqtoolbox.objective import Parameters
from eqtoolbox.probe import Measurement
from eqtoolbox.snapshot import Snapshot
from eqtoolbox.symmetry.charges import Charges
from eqtoolbox.symmetry.flow import equilibrium

FAMILY = "scale"
MEMORY = 0.9  # share of the past in the running mean of |g|^2 over kept steps


def balance(
    charges: Charges, snapshot: Snapshot, gradient: Parameters, state: dict[str, Any]
) -> Iterator[Measurement]:
    """Norm over its equilibrium, steps until it is reached, effective learning rate: medians.

    Under SGD with decay and without momentum only, where the closed form holds; Q of a scale
    symmetry is |w|^2 / 2 and Q of the gradient |g|^2 / 2.
    """
    where = charges.families.get(FAMILY)
    rates = _rates(charges, snapshot)
    if where is None or rates is None:
        return
    lr, decay = rates
    now: Tensor = charges.values(charges.read(gradient))[where]
    past = state.get("forces")
    state["forces"] = forces = now if past is None else MEMORY * past + (1 - MEMORY) * now
    norm = (2 * state["values"][where]).clamp_min(1e-300).sqrt()
    found = equilibrium(norm, (2 * forces).clamp_min(0).sqrt(), lr=lr, decay=decay)
    note = f"each step turns the weights by {found.angle:.2e} rad at equilibrium"
    ratio = norm / found.target.clamp_min(1e-300)
    yield Measurement("equilibrium", float(ratio.median()), FAMILY, note=note)
    yield Measurement("equilibrium_steps", float(found.steps.median()), FAMILY, unit="steps")
    yield Measurement("effective_lr", float(found.effective_lr.median()), FAMILY)


def _rates(charges: Charges, snapshot: Snapshot) -> tuple[float, float] | None:
    """The one learning rate and decay of all scale-symmetric weights under plain SGD."""
    names = {n for m in charges.members if m.family == FAMILY for n in m.names}
    groups = [snapshot.group_of(n) for n in names]
    if snapshot.optimizer != "SGD" or not groups or any(g is None for g in groups):
        return None
    rates = {(g.lr, g.weight_decay, g.momentum, g.maximize) for g in groups if g is not None}
    lr, decay, momentum, maximize = rates.pop()
    alone = not rates and momentum == 0 and not maximize
    return (lr, decay) if alone and lr > 0 and decay > 0 else None
