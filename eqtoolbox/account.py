"""The account: what the monitor itself records, of the training step and of its own cost."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from eqtoolbox.budget import Budget
from eqtoolbox.journal import Journal
from eqtoolbox.objective import Parameters
from eqtoolbox.probe import Probe, record
from eqtoolbox.runner import headline
from eqtoolbox.snapshot import parameter_groups


class Account:
    """Writes loss, learning rate, overhead, set-up, and which due measurements were left out.

    Of measurements in a row that the budget leaves out, the first, second, fourth, eighth, ... get
    a row, so that skips cost no more than measuring; `cost/skipped/<probe>` counts them all.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        budget: Budget,
        journal: Journal,
    ) -> None:
        self.skipped: dict[str, int] = {}  # due measurements left out, by probe
        self._told: dict[str, int] = {}  # how many of these are on record
        self._row: dict[str, int] = {}  # how many in a row
        self._setup = -1.0  # seconds on record
        self._model = model
        self._optimizers = optimizers
        self._budget = budget
        self._journal = journal

    def step(self, loss: float | None) -> None:
        """Loss and learning rate of the step."""
        if loss is not None:
            self._journal.emit("training/loss", loss)
        groups = parameter_groups(self._optimizers, self._model)
        rates = {g.lr for g in groups if g.names and math.isfinite(g.lr)}
        if len(rates) == 1:
            self._journal.emit("training/learning_rate", rates.pop())

    def applied(self, before: Parameters, after: Parameters) -> None:
        """Whether the step moved anything: gradient scalers skip steps inside fused optimizers."""
        moved = any(not torch.equal(p, after[n]) for n, p in before.items() if n in after)
        note = "" if moved else "no parameter changed: skipped, or a learning rate of zero"
        self._journal.emit("training/applied", float(moved), note=note)

    def skip(self, probes: Sequence[Probe]) -> None:
        """The budget leaves these out at this step."""
        for probe in probes:
            name = probe.name
            self.skipped[name] = self.skipped.get(name, 0) + 1
            self._row[name] = count = self._row.get(name, 0) + 1
            if count & (count - 1) == 0:
                self._journal.write(
                    record(headline(probe, "skipped_budget", self._why(count)), probe)
                )
                self._tell(name)

    def measured(self, probes: Sequence[Probe]) -> None:
        """These were measured at this step."""
        for probe in probes:
            self._row.pop(probe.name, None)
            self._tell(probe.name)

    def costs(self) -> None:
        """What the monitor took so far."""
        for name in self.skipped:
            self._tell(name)
        if self._budget.training:
            self._journal.emit("cost/overhead", self._budget.overhead)
        if self._budget.setup != self._setup:
            self._setup = self._budget.setup
            self._journal.emit("cost/setup", self._setup, unit="s")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return dict(self.skipped)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count on where `state_dict` was taken."""
        self.skipped, self._told = dict(state), dict(state)

    def _tell(self, name: str) -> None:
        total = self.skipped.get(name, 0)
        if total != self._told.get(name, 0):
            self._told[name] = total
            self._journal.emit(f"cost/skipped/{name}", float(total))

    def _why(self, count: int) -> str:
        so_far, allowed = self._budget.overhead, self._budget.share
        row = "" if count == 1 else f"{count} in a row; "
        return f"{row}overhead {so_far:.1%} so far, budget {allowed:.1%}"
