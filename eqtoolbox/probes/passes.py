"""Passes: what conservation takes of a step's tensors, on its way to the host as one parcel."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.linalg.parcel import Parcel
from eqtoolbox.probes.leftover import squares, weights
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.snapshot import Snapshot
from eqtoolbox.weights.charges.change import Change, Passed, Rates
from eqtoolbox.weights.charges.charges import ChargeReading, Charges

NO_BUDGET = "no learning rate, no gradient, or several optimizers of which not all stepped"


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Norms that come to the host along with what a step did to the charges."""

    after: Tensor  # after the step, of every parameter
    weights: Tensor  # of every weight and gain before it, where approximate laws ask for them
    size: float  # |g|


@dataclass(frozen=True, kw_only=True, eq=False)
class StepPass:
    """The pass through a step, with norms that come to the host along with it."""

    passed: Passed
    why: str  # why there is no budget, as far as that is known before anything is read
    counts: list[int]  # of the norms
    known: frozenset[str] | None = None  # parameters whose gradient is known; None: nobody's

    @classmethod
    def of(
        cls,
        charges: Charges,
        snapshot: Snapshot,
        after: Parameters,
        approximate: bool,
        parcel: Parcel,
    ) -> "StepPass":
        """Launched, and not waited for.

        Args:
            charges, snapshot, after: of the step.
            approximate: whether what approximate laws may lack is asked for.
            parcel: with which the numbers go to the host.
        """
        before, shards, gradient = snapshot.before, snapshot.shards, snapshot.gradient
        rates = None if gradient is None else _rates(snapshot, charges)
        if rates is None:
            still = dict.fromkeys(charges.names, 0.0)
            gradient, why, rates = None, NO_BUDGET, Rates(lr=still, decay=still)
        else:
            why = ""
        known = gradient
        if gradient is not None:  # what no optimizer holds does not move by it
            rest = [n for n in charges.names if n not in gradient]
            gradient = {**gradient, **{n: torch.zeros_like(before[n]) for n in rest}}
        others = {n: g for n, g in (gradient or {}).items() if n not in set(charges.names)}
        asked = weights(before) if approximate else {}
        lists = [squares(own, shards) for own in (after, asked, others)]
        home = before[charges.names[0]].device
        beside = torch.cat([numbers.to(home) for numbers in lists])
        return cls(
            known=None if known is None else frozenset(known),
            passed=charges.passed(before, after, gradient, rates, beside, parcel),
            why=why,
            counts=[*map(len, lists)],
        )

    def told(self, values: Tensor, given: bool) -> tuple[Change, Beside, str]:
        """What the step did to the charges, and why there is no budget where there is none.

        Args:
            values: of the charges before it.
            given: whether the gradient turned out to be what the optimizer was given.
        """
        change, size = self.passed.change(values), math.nan
        why = self.why if given else NO_BUDGET
        ended, now, others = torch.split(change.beside, self.counts)
        if not why:
            size = math.hypot(change.pull, float(others.sum().sqrt()))
            if not math.isfinite(size) and change.moved != 0:
                why = "the gradient is not finite, and yet the step moved the parameters"
        if not math.isfinite(size):  # without a reason, loss scaling skipped it: all terms are zero
            change = change.resting
        return change, Beside(after=ended.sqrt(), weights=now.sqrt(), size=size), why


@dataclass(frozen=True, kw_only=True, eq=False)
class Passes:
    """All passes of one measurement."""

    before: ChargeReading | None  # where charges may have moved unseen
    step: StepPass
    after: ChargeReading | None  # where budgets are recorded, or parameters were zero
    keep: bool  # whether budgets are recorded


def _rates(snapshot: Snapshot, charges: Charges) -> Rates | None:
    """Rates of the step; 0 for a parameter in nobody's group, None for an unknown rate."""
    lr, decay = dict.fromkeys(charges.names, 0.0), dict.fromkeys(charges.names, 0.0)
    for group in snapshot.groups:
        own = [n for n in group.names if n in lr]
        lr |= dict.fromkeys(own, -group.lr if group.maximize else group.lr)
        decay |= dict.fromkeys(own, group.weight_decay)
    if any(math.isnan(rate) for rate in lr.values()):
        return None
    return Rates(lr=lr, decay=decay)
