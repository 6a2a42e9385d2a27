"""Due steps: what is caught of an optimizer step that is due, measured and settled."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from eqtoolbox.record.sink import Sink
from eqtoolbox.watch.account import Account
from eqtoolbox.watch.acts import Acts
from eqtoolbox.watch.agenda import Agenda
from eqtoolbox.watch.budget import LOSS, Budget
from eqtoolbox.watch.capture.loss_capture import LossCapture
from eqtoolbox.watch.capture.watched import Watched
from eqtoolbox.watch.catch import Catch
from eqtoolbox.watch.clock import Clock
from eqtoolbox.watch.device import synchronize
from eqtoolbox.watch.interrupts import Gate
from eqtoolbox.watch.journal import Journal
from eqtoolbox.watch.later import ReadLater
from eqtoolbox.watch.memory import Governor
from eqtoolbox.watch.options import Options
from eqtoolbox.watch.probe import Scheduled
from eqtoolbox.watch.runner import Runner
from eqtoolbox.watch.step import Step
from eqtoolbox.watch.time_limit import TimeLimit
from eqtoolbox.world.world import Retired, World


class DueSteps(ABC):
    """What the monitor of one training is made of, and what it does at a due step.

    Args:
        model: that is trained.
        optimizer: one, or several.
        given: options of the user.
        probes: with their schedules.
        sinks: places where records go.
        segment: how often the run was resumed before.
        step: number of the coming step.
        attached_at: file and line of the user's call.
        called: what the loop calls, where the model is wrapped.
        world: the processes that train it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        given: Options | None = None,
        *,
        probes: Sequence[Scheduled],
        sinks: Sequence[Sink] = (),
        segment: int = 0,
        step: int = 0,
        attached_at: str = "",
        called: nn.Module | None = None,
        world: World | None = None,
    ) -> None:
        self._world = world or World()
        given, one = given or Options(), isinstance(optimizer, torch.optim.Optimizer)
        self.model = model
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            (optimizer,) if one else tuple(optimizer)  # type: ignore[arg-type, assignment]
        )
        self.optimizer = self.optimizers[0]
        self.probes = tuple(probes)
        self.step = step
        self.attached_at = attached_at
        self._watched = Watched(model, self.optimizers, given.criterion, self._world.sharded)
        self._capture = LossCapture(self._watched, given.loss_fn, given.criterion, called)
        self._journal = Journal(sinks, given.on_error, segment, not self._world.first)
        names = [s.probe.name for s in self.probes]
        lightens = [s.probe.name for s in self.probes if s.probe.lightens]
        light_first = [s.probe.name for s in self.probes if s.probe.light_first]
        rest = given.allowance, lightens, light_first, given.steps
        self._budget = Budget(given.budget, names, *rest)
        self._account = Account(self.optimizers, self._budget, self._journal)
        limits = TimeLimit(given.probe_timeout), Governor(given.memory)
        self._runner = Runner(model, given.seed, self._journal, *limits, self._world)
        self._waiting = self._capture.pending.waiting
        self._waiting.tell = self._account.stalled
        self._clock = Clock(self._budget, self._capture.stopwatch)
        self._agenda = Agenda(self.probes, self._budget, self._journal, self._world)
        self._taken = Step(self._watched)
        self._gate = Gate()  # for signals that come while a step is measured
        seen = self._watched, self._capture, self._taken
        by = self._journal, self._runner, self._account, self._agenda
        self._catch = Catch(
            *(*seen, *by),
            probe_batch=given.probe_batch,
            seed=given.seed,
            resumed=segment > 0,
            world=self._world,
        )
        self._several = len(self.optimizers) > 1
        self._later = ReadLater(
            *(*seen, *by, self._budget, self._catch.vitals),
            alone=not (self._several or self._world.several),
            settled=self._catch.settled,
            freeze=self._catch.snapshot,
        )
        told = self._catch.shared, self._runner, self._journal, self.probes
        self._acts = Acts(
            *(self._watched, self._taken, *told),
            attached=lambda: self.attached,
            settle=self._settle,
        )
        self._capture.fail = self._failed
        self._watch()

    @property
    @abstractmethod
    def attached(self) -> bool:
        """Whether it watches."""

    @abstractmethod
    def _watch(self) -> None:
        """Begin to watch."""

    def _begin(self, closure: bool) -> None:
        """The parameters are still theta_t; a closure may evaluate the loss at others."""
        started = self._clock.earn()
        try:
            self._capture.pending.step_starts(self._taken.unmoved)
            if self._agenda.run or closure:
                self._capture.look_ahead(self._catch.probe_batch)
                self._taken.keep(not self._agenda.evaluates, self._agenda.lends)
        except BaseException as error:
            self._failed(error)
            self._taken.missed = error
        self._clock.leave(started)

    def _inside(self, act: Callable[..., None], *given: Any) -> None:
        with self._capture.stopwatch:
            self._safely(act, *given)

    def _finish(self) -> None:
        """The step is over: measure it, or launch what is read later, and forget it."""
        taken, run = self._taken, self._agenda.run
        started, later = self._clock.earn(), False
        try:
            if taken.missed is not None:
                for probe in self._agenda.todo:
                    self._runner.fail(probe, taken.missed)
                return
            later = self._later.launch(self.step)
            if not later and taken.before is not None:
                synchronize(self.model)
                started = self._clock.earn()
            named = self._watched.named()
            self._account.lose(*self._capture.pending.skipped)
            if later:
                self._account.measured(run)
            else:
                self._account.loss(self._capture.value(taken.scale))
                self._catch.vitals.losses(self.step)
            self._account.rate(named)
            if not later and run and taken.before is not None:
                self._catch.measure(self.step, taken.before, named)
            self._account.skip(self._agenda.left_out)
            self._journal.succeeded("monitor")
        except BaseException as error:
            self._failed(error)
        finally:
            self._gate.holding = True
            taken.over()
            self._capture.drop()
            if later and run:
                self._clock.hold()
            elif later:
                self._clock.leave(started)
            else:
                spent, once = map(self._agenda.paid, self._runner.take())
                self._pay(started, spent | {LOSS: 0.0} if self._agenda.loss else spent, once)
            if self._world.retired:
                self._agenda.part(self.step)

    def _settle(self) -> None:
        """Read what was launched of the last due step, if that is still to be read."""
        step = self._later.step
        if step is None:
            return
        started = self._clock.earn()
        with self._gate, self._journal.at(step):
            try:
                self._later.read()
            except BaseException as error:
                self._failed(error)
            finally:
                self._gate.holding = True
                self._pay(started, *self._runner.take())

    def _pay(self, started: float, spent: dict[str, float], once: dict[str, float]) -> None:
        """Settle what a step took, and say what the monitor took so far.

        Args:
            started: when its measuring did.
            spent, once: seconds of what was measured, as `Budget.spend` takes them.
        """
        ended = self._clock.pay(started, spent, once)
        if spent.keys() - {LOSS}:
            self._account.costs(self._catch.vitals.samples)
        self._journal.flush()
        self._clock.resume(ended)

    def _safely(self, act: Callable[..., None], *given: Any) -> None:
        """What goes wrong here is no reason to stop training."""
        try:
            act(*given)
        except BaseException as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, Retired):
            return self._agenda.part(self.step)
        self._journal.failed("monitor", error)
