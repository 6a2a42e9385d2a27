"""Balance: how far scale-symmetric weights are from where decay and gradient hold their norm."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.probes.sgd import sgd
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import NotApplicable, Snapshot
from eqtoolbox.watch.state import State
from eqtoolbox.weights.charges.change import Change
from eqtoolbox.weights.charges.charges import Charges
from eqtoolbox.weights.charges.flow import equilibrium

FAMILY = "scale"
MEMORY = 0.9  # share of the past in the running mean of |v|^2 over kept steps
TINY = 1e-300


@dataclass(kw_only=True, eq=False)
class Balance(State):
    """What is remembered of scale-symmetric weights."""

    forces: Tensor | None = None  # running mean of |v|^2, (units,)
    balance_told: bool = False  # whether it was said why there is no equilibrium


def balance(
    charges: Charges, snapshot: Snapshot, change: Change, values: Tensor, known: Balance
) -> Iterator[Measurement]:
    """How far the step turned scale-symmetric weights, and their equilibrium: medians over units.

    `angular_update` is the angle between w and w + d, in radians a step, of any optimizer. Under
    SGD with decay and heavy-ball momentum, where the closed forms hold: `equilibrium_angle` that it
    tends to, `equilibrium` the norm over its own, `equilibrium_steps` until that is reached, and
    `effective_lr`; for other optimizers the reason, once.

    From Q = |w|^2 / 2, <w, d> and Q(d) = |d|^2 / 2, which the budget knows.

    Args:
        charges, snapshot, change: of the step.
        values: all charges after it.
        known: of the steps before; brought up to date.
    """
    where = charges.families.get(FAMILY)
    members = [m for m in charges.members if m.family == FAMILY]
    if where is None or not all(m.form.squares for m in members):
        return
    force, drift = change.finite_step[where], change.drift[where]
    norm = (2 * (values[where] - drift)).clamp_min(TINY).sqrt()  # before the step
    along = (drift - force) / norm
    across = (2 * force - along.square()).clamp_min(0).sqrt()
    turned = torch.atan2(across, norm + along)
    yield Measurement("angular_update", float(turned.median()), FAMILY, unit="rad/step")
    try:
        rates = sgd(snapshot, {n for m in members for n in m.names})
        if not (rates.lr > 0 and rates.decay > 0):
            raise NotApplicable("no weight decay: norms of scale-symmetric weights only grow")
    except NotApplicable as reason:
        if not known.balance_told:
            known.balance_told = True
            yield Measurement(
                "equilibrium", math.nan, FAMILY, status="not_applicable", note=str(reason)
            )
        return
    now: Tensor = (across / rates.lr).square()
    past = known.forces
    known.forces = forces = now if past is None else MEMORY * past + (1 - MEMORY) * now
    norm = (2 * values[where]).clamp_min(TINY).sqrt()
    found = equilibrium(
        norm, forces.sqrt(), lr=rates.lr, decay=rates.decay, momentum=rates.momentum
    )
    yield Measurement("equilibrium_angle", found.angle, FAMILY, unit="rad/step")
    ratio = norm / found.target.clamp_min(TINY)
    yield Measurement("equilibrium", float(ratio.median()), FAMILY)
    yield Measurement("equilibrium_steps", float(found.steps.median()), FAMILY, unit="steps")
    yield Measurement("effective_lr", float(found.effective_lr.median()), FAMILY)
