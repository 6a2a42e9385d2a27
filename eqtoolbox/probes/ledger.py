"""The ledger of charges: what they were at the start and are now, and what moved them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.probes.balance import Balance
from eqtoolbox.probes.forecast import Forecast
from eqtoolbox.probes.leftover import Leftover
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.replay.tree import map_tensors
from eqtoolbox.watch.state import State
from eqtoolbox.weights.charges.charges import ChargeReading, Charges

CAUSES = ("symmetry", "decay", "optimizer", "finite_step", "learning_rates")
NOTHING = torch.zeros(0)
NO_CAUSES = torch.zeros(len(CAUSES), 0)

Exact = dict[str, tuple[Tensor, Tensor, Tensor]]  # by family: charges, scales and units


@dataclass(kw_only=True, eq=False)
class Ledger(State):
    """What `Conservation` remembers; empty before the first step."""

    of: list[str] = field(default_factory=list)  # the symmetries that charges are of
    start: Tensor = NOTHING  # charges at the first step, (charges,)
    reach: Tensor | None = None  # what |Q| of each could be then; None: not known
    sketched: dict[str, Tensor] = field(default_factory=dict)  # of large groups, all charges then
    sketched_reach: dict[str, Tensor] = field(default_factory=dict)
    values: Tensor = NOTHING  # charges now: as last read and moved by each step since
    scales: Tensor = NOTHING  # what |Q| could be when last read
    lengths: dict[str, float] = field(default_factory=dict)  # |K| of each family then
    steps: int = 0  # since the charges were read
    causes: Tensor = NO_CAUSES  # their sums since the start, (causes, charges)
    noise: dict[str, tuple[float, float]] = field(default_factory=dict)  # of laws: |.|, over |g|
    begun: int = 0  # the step before which they were read first
    measured: int = -1  # the last step that was
    acts: Tensor | None = None  # what acts did to the charges since the start
    acted: Tensor | None = None  # and since budgets were last recorded
    unseen: bool = False  # whether an act moved charges that were not known by then
    stale: bool = False  # whether an act moved the parameters since `noise` was measured
    kept: int | None = None  # the last step at which budgets were recorded
    leftover: Leftover = field(default_factory=Leftover)
    forecast: Forecast = field(default_factory=Forecast)
    balance: Balance = field(default_factory=Balance)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take what was saved, to the host; what a version before sketches saved begins anew."""
        if "sketched" not in saved:
            return
        super().load_state_dict(map_tensors(Tensor.cpu, dict(saved)))
        missing = len(CAUSES) - len(self.causes)  # of versions that knew fewer
        self.causes = torch.cat([self.causes, self.causes.new_zeros(missing, self.causes.shape[1])])

    def act(self, charges: Charges | None, before: Parameters, after: Parameters) -> None:
        """Count what an act does to the charges: a cause of its own, no step stands for it."""
        self.stale, self.forecast.course = True, None  # which begins anew at the next step
        if charges is None or not self.of or not self.knows(charges):
            self.unseen = True
            return
        was, now = charges.read(before), charges.read(after)
        jump = charges.values(now) - charges.values(was)
        self._count(jump)
        self.values = self.values + jump
        self._size(charges, now)

    @property
    def born_at_zero(self) -> bool:
        """Whether there are charges whose parameters were zero, so that they had no scale."""
        return bool((self.scales <= 0).any())

    def unseen_at(self, step: int) -> bool:
        """Whether charges may have moved unseen before this step."""
        return self.unseen or step - self.measured != 1

    def caught_up(self, charges: Charges, reading: ChargeReading, step: int) -> None:
        """Take what charges are before a step, where they may have moved unseen.

        What an act did that came before the charges were known, as where a run goes on, is the
        change since the last step, if that was the last measured.
        """
        known = self.values
        self.read(charges, reading)
        if self.unseen and step - self.measured == 1:
            self._count(self.values - known)
        self.unseen = False

    def _count(self, jump: Tensor) -> None:
        self.acts = jump if self.acts is None else self.acts + jump
        self.acted = jump if self.acted is None else self.acted + jump

    def knows(self, charges: Charges) -> bool:
        """Whether this was begun for these charges: others are found where the loss changes."""
        return self.of in ([], charges.labels) and len(self.start) == charges.count

    def read(self, charges: Charges, reading: ChargeReading) -> Exact:
        """Take everything about the charges from a reading, exactly.

        Returns:
            What is sketched, whole.
        """
        self.values, self.steps = charges.values(reading), 0
        self._size(charges, reading)
        return charges.sketched(reading)

    def _size(self, charges: Charges, reading: ChargeReading) -> None:
        lengths, self.scales = charges.lengths(reading), charges.scales(reading)
        self.lengths = {f: float(lengths[w].norm()) for f, w in charges.generators.items()}
