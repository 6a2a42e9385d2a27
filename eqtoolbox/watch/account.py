"""The account: what the monitor itself records, of the training step and of its own cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from eqtoolbox.watch.budget import Budget
from eqtoolbox.watch.capture.holders import instead
from eqtoolbox.watch.capture.waiting import PATIENCE, Waiting
from eqtoolbox.watch.journal import Journal
from eqtoolbox.watch.probe import Probe, record
from eqtoolbox.watch.rows import headline
from eqtoolbox.watch.snapshot import parameter_groups


class Account:
    """Writes loss, learning rate, overhead, set-up, and which due measurements were left out.

    Of measurements in a row that the budget leaves out, the first, second, fourth, eighth, ... get
    a row, so that skips cost no more than measuring; `cost/skipped/<probe>` counts them all.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        budget: Budget,
        journal: Journal,
    ) -> None:
        self.skipped: dict[str, int] = {}  # due measurements left out, by probe
        self._told: dict[str, int] = {}  # how many of these are on record
        self._row: dict[str, int] = {}  # how many in a row
        self.lost = 0  # training steps that were skipped
        self._lost_in_row = 0  # of these, due ones, inside a fused optimizer
        self._setup = -1.0  # seconds on record
        self._timed = 0.0, -1  # seconds of training, and the step, that are on record
        self._optimizers = optimizers
        self._budget = budget
        self._journal = journal

    def loss(self, loss: float | None) -> None:
        """That of the step, where it is a number."""
        if loss is not None:
            self._journal.emit("training/loss", loss)

    def rate(self, named: Mapping[str, nn.Parameter]) -> None:
        """Learning rate of the step; `named` holds the model's parameters."""
        groups = parameter_groups(self._optimizers, named)
        rates = {g.lr for g in groups if g.names and math.isfinite(g.lr)}
        if len(rates) == 1:
            self._journal.emit("training/learning_rate", rates.pop())

    def applied(self, moved: bool, not_finite: Callable[[], str]) -> None:
        """Whether the step moved anything: gradient scalers skip steps inside fused optimizers.

        Args:
            moved: whether it did.
            not_finite: tells the first gradient that is not; empty if there is none.
        """
        note = "" if moved else "no parameter changed: skipped, or a learning rate of zero"
        self._journal.emit("training/applied", float(moved), note=note)
        culprit = "" if moved else not_finite()
        self._lost_in_row = self._lost_in_row + 1 if culprit else 0
        if culprit:
            self.lose(1, culprit)
        if self._lost_in_row == PATIENCE:
            self._journal.warn("monitor", _skipped(f"the last {PATIENCE} due steps", culprit))

    def lose(self, count: int, culprit: str) -> None:
        """So many training steps were skipped, as the gradient of `culprit` was not finite."""
        self.lost += count
        if count:
            self._tell_lost(self.lost, culprit)

    def stalled(self, waiting: Waiting) -> None:
        """Losses are evaluated, and no step is taken that the monitor could see."""
        if waiting.moved:
            self._unseen(waiting.losses, f"the parameters move, but {self._no_step}")
        else:
            self._tell_lost(self.lost + waiting.thrown, waiting.culprit)
            steps = f"{waiting.thrown} steps in a row"
            self._journal.warn("monitor", _skipped(steps, waiting.culprit))
        self._journal.flush()

    def ended(self, waiting: Waiting, steps: int, measured: bool) -> None:
        """The run is over; say so if nothing was measured, and why.

        Args:
            waiting: for the step after the last one.
            steps: of the optimizers that were seen.
            measured: whether any probe ran.
        """
        losses, told = waiting.losses, waiting.told
        if losses and not waiting.culprit:
            waiting.look()
        skipped, culprit = waiting.ended()
        if culprit:
            self.lose(skipped + 1, culprit)
        if measured:
            return
        if culprit:
            why = _skipped(f"all {self.lost} steps", culprit)
        elif steps:
            why = f"no probe was due in {steps} steps; give another schedule"
        elif losses and not told:
            return self._unseen(losses, self._no_step)
        else:
            return
        if told:
            self._journal.event("warning", "monitor", f"nothing was measured: {why}")
        else:
            self._journal.warn("monitor", f"nothing was measured: {why}")

    @property
    def _no_step(self) -> str:
        kinds = " and ".join(dict.fromkeys(type(o).__name__ for o in self._optimizers))
        return f"no step() of the attached {kinds} was seen; {instead(self._optimizers)}"

    def _unseen(self, losses: int, why: str) -> None:
        self._journal.emit("monitor/steps_unseen", float(losses), note=why, facts={"why": why})
        self._journal.warn("monitor", f"{losses} losses were evaluated, and {why}")

    def _tell_lost(self, count: int, culprit: str) -> None:
        note = f"the gradient of {culprit} was not finite"
        facts = {"culprit": culprit}
        self._journal.emit("training/skipped_steps", float(count), note=note, facts=facts)

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

    def by_rank(self, seconds: Sequence[float]) -> None:
        """What the probes of this step took each process, but for waiting for the others."""
        for rank, took in enumerate(seconds):
            self._journal.emit(f"cost/rank_seconds/{rank}", took, unit="s")

    def costs(self, samples: int = 0) -> None:
        """What the monitor took so far, and how long steps of so many samples take without it."""
        for name in self.skipped:
            self._tell(name)
        seconds, step = self._budget.training, self._journal.step
        if seconds:
            self._journal.emit("cost/overhead", self._budget.overhead)
        known, last = self._timed
        if last >= 0 and step > last and seconds > known:
            each = (seconds - known) / (step - last)
            self._journal.emit("cost/step_time", each, unit="s")
            if samples:
                self._journal.emit("cost/samples_per_second", samples / each, unit="1/s")
        self._timed = seconds, step
        if self._budget.setup != self._setup:
            self._setup = self._budget.setup
            self._journal.emit("cost/setup", self._setup, unit="s")

    def settled(self, samples: int = 0) -> None:
        """What the whole run took, and what it was allowed to take."""
        self.costs(samples)
        if self._budget.share is not None:
            self._journal.emit("cost/spent", self._budget.spent, unit="s")
            self._journal.emit("cost/allowed", self._budget.allowed, unit="s")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return dict(self.skipped)

    def load_state_dict(self, state: dict[str, Any], lost: int = 0) -> None:
        """Count on where `state_dict` was taken, and so many steps were skipped."""
        self.skipped, self._told, self.lost = dict(state), dict(state), lost

    def _tell(self, name: str) -> None:
        total = self.skipped.get(name, 0)
        if total != self._told.get(name, 0):
            self._told[name] = total
            self._journal.emit(f"cost/skipped/{name}", float(total))

    def _why(self, count: int) -> str:
        row = "" if count == 1 else f"{count} in a row; "
        return f"{row}{self._budget.told()}"

    def summary(self, steps: int) -> str:
        """A run in one line: points of every probe, what was spent, what more would buy."""
        had = self._budget.points
        points = [f"{n} {k}" if k == of else f"{n} {k} of {of}" for n, (k, of) in had.items()]
        twice = {} if self._budget.share is None else self._budget.expected(2.0)
        more = [f"{n} {k}" for n, (k, _) in twice.items() if k > had[n][0]]
        bought = f"; twice the budget: {', '.join(more)}" if more else ""
        return f"{steps} steps, points: {', '.join(points)}; {self._budget.told()}{bought}"


def _skipped(steps: str, culprit: str) -> str:
    return (
        f"{steps} were skipped: the gradient of {culprit} is not finite, so that a gradient scaler "
        "(or the loop itself) takes no step; look for a division by zero, a root or a logarithm "
        "at 0, or an overflow of half precision in the loss"
    )
