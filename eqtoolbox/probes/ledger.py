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
from eqtoolbox.weights.charges.charges import Charges

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
    measured: int = -1  # the last step that was
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

    def knows(self, charges: Charges) -> bool:
        """Whether this was begun for these charges: others are found where the loss changes."""
        return self.of in ([], charges.labels) and len(self.start) == charges.count

    def read(self, charges: Charges, params: Parameters) -> Exact:
        """Take everything about the charges from these parameters, exactly.

        Returns:
            What is sketched, whole.
        """
        reading = charges.read(params)
        lengths = charges.lengths(reading)
        self.values, self.scales = charges.values(reading), charges.scales(reading)
        self.lengths = {f: float(lengths[w].norm()) for f, w in charges.generators.items()}
        self.steps = 0
        return charges.sketched(reading)
