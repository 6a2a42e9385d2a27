"""A course: the optimizer steps of one training, and at each what is due, caught and measured."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from eqtoolbox.record.sink import Sink
from eqtoolbox.replay.eager import eager, recorded, untraced
from eqtoolbox.replay.thread.scope import current
from eqtoolbox.watch.account import Account
from eqtoolbox.watch.acts import Acts
from eqtoolbox.watch.agenda import Agenda
from eqtoolbox.watch.budget import LOSS, Budget
from eqtoolbox.watch.capture.loss_capture import LossCapture
from eqtoolbox.watch.capture.watched import Watched
from eqtoolbox.watch.catch import Catch
from eqtoolbox.watch.clock import Clock
from eqtoolbox.watch.interrupts import Gate
from eqtoolbox.watch.journal import Journal
from eqtoolbox.watch.memory import Governor
from eqtoolbox.watch.options import Options
from eqtoolbox.watch.probe import Scheduled
from eqtoolbox.watch.runner import Runner, synchronize
from eqtoolbox.watch.step import Step, closure_of, look_first
from eqtoolbox.watch.time_limit import TimeLimit
from eqtoolbox.world.world import Retired, World

RECORDED = (
    "a step was recorded as a CUDA graph, whose replays call no hooks: steps are seen only while "
    "they run as Python; measure from time to time by monitor.probe_now()"
)


class Course:
    """What happens as optimizers step.

    Each call of `optimizer.step()` is one step; of several optimizers, one step is over when each
    has stepped once, or one of them steps again. A due one is caught while it is taken and
    measured when it is over.

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
        self.step = self._first = step
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
        self._stepped: set[int] = set()  # optimizers that took the step that is being taken
        self._open, self._gate = False, Gate()  # for signals that come while a step is measured
        seen = self._watched, self._capture, self._taken
        by = self._journal, self._runner, self._account, self._agenda
        self._catch = Catch(
            *(*seen, *by),
            probe_batch=given.probe_batch,
            seed=given.seed,
            resumed=segment > 0,
            world=self._world,
        )
        told = self._catch.shared, self._runner, self._journal, self.probes
        self._acts = Acts(self._watched, self._taken, *told, attached=lambda: self.attached)
        self._several = len(self.optimizers) > 1
        ends = self._one_ends if self._several else self._step_ends
        self._handles = [o.register_step_post_hook(ends) for o in self.optimizers]
        self._starts: list[Any] = []  # hooks that only steps which are caught have
        self._capture.fail = self._failed
        self._arm()

    @property
    def attached(self) -> bool:
        """Whether it watches: not any more once it is detached or closed."""
        return bool(self._handles)

    def _arm(self) -> None:
        """Find out what is due at the coming step, and what of it is paid for."""
        self._journal.step = self.step
        if self._clock.running:
            self._clock.earn()
        self._agenda.plan(self.step)
        self._capture.replays = (
            self._several or not self._catch.faithful.checked or self._agenda.evaluates
        )
        if self._agenda.catches or self._capture.armed:
            self._capture.armed = self._agenda.catches
        if self._agenda.catches and self._capture.replays:
            self._capture.expect_check()
        if self._handles:
            self._watch_starts(self._agenda.catches or self._several)

    def _watch_starts(self, wanted: bool) -> None:
        """Have hooks that the optimizers call before they step, or have none."""
        if wanted and not self._starts:
            hook = self._one_starts if self._several else self._step_starts
            self._starts = [o.register_step_pre_hook(hook) for o in self.optimizers]
            look_first(self.optimizers)
        elif self._starts and not wanted:
            for handle in self._starts:
                handle.remove()
            self._starts = []

    @eager
    def _step_starts(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        if not self._agenda.catches or current() is not None or recorded():
            return None
        self._begin(closure=callable(closure_of(args, kwargs)))
        return self._taken.asked(optimizer, args, kwargs, self._inside)

    @untraced
    def _step_ends(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if current() is not None:  # a loss that is evaluated again steps an optimizer itself
            return
        if self._recorded():
            return
        started = time.perf_counter()
        if self._agenda.ends_at(self.step):
            self._due_step_ends(started)
            return
        self._clock.begin(started)
        self._capture.unused = None
        self._waiting.losses, self._waiting.mark = 0, ()
        self.step = self._journal.step = self.step + 1
        self._clock.idle(started)

    @eager
    def _due_step_ends(self, started: float) -> None:
        """A step ends that was due, or that one which may be due follows."""
        caught = self._agenda.catches
        with self._gate:
            try:
                if caught:
                    self._finish()
                elif self._agenda.todo:
                    self._account.skip(self._agenda.left_out)
                    self._journal.flush()
                self._clock.begin(started)
            finally:  # an interrupt passes, and the next step is counted right
                self._gate.holding = True
                self._capture.unused = None
                self._waiting.losses, self._waiting.mark = 0, ()
                self._agenda.over(self.step)
                self.step += 1
                self._arm()
        if not caught:
            self._clock.idle(started)

    @eager
    def _one_starts(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """One of several optimizers starts."""
        if current() is not None or recorded():
            return None
        if self._open and id(optimizer) in self._stepped:
            self._close_step()
        if not self._open:
            self._open = True
            if self._agenda.catches:
                self._begin(closure=True)
            elif self._capture.armed:
                self._capture.pending.step_starts(self._taken.unmoved)
            self._capture.armed = self._agenda.catches or self._agenda.catches_after(self.step + 1)
        self._capture.pending.step_goes_on()
        return self._taken.asked(optimizer, args, kwargs, self._inside)

    @eager
    def _one_ends(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if current() is not None or self._recorded():
            return
        self._capture.pending.step_pauses()
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self.optimizers):
            self._close_step()

    def _close_step(self) -> None:
        self._open = False
        self._stepped.clear()
        if not self._agenda.catches:
            self._capture.drop()
        self._step_ends(None, (), {})

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
        """The step is over: measure it and forget it."""
        if self._taken.before is not None:
            synchronize(self.model)
        started = self._clock.earn()
        try:
            if self._taken.missed is not None:
                for probe in self._agenda.todo:
                    self._runner.fail(probe, self._taken.missed)
                return
            named = self._watched.named()
            self._account.lose(*self._capture.pending.skipped)
            self._account.step(self._capture.value(self._taken.scale), named)
            self._catch.vitals.losses(self.step)
            if self._agenda.run and self._taken.before is not None:
                self._catch.measure(self.step, self._taken.before, named)
            self._account.skip(self._agenda.left_out)
            self._journal.succeeded("monitor")
        except BaseException as error:
            self._failed(error)
        finally:
            self._gate.holding = True
            self._taken.over()
            self._capture.drop()
            self._pay(started)
            if self._world.retired:
                self._agenda.part(self.step)

    def _pay(self, started: float) -> None:
        """Settle what the step took, and say what the monitor took so far."""
        spent, once = self._runner.take()
        if self._agenda.loss:
            spent[LOSS] = 0.0
        ended = self._clock.pay(started, self._agenda.paid(spent), self._agenda.paid(once))
        if self._agenda.run:
            self._account.costs(self._catch.vitals.samples)
        self._journal.flush()
        self._clock.resume(ended)

    def _recorded(self) -> bool:
        """Whether the step that ends is being recorded as a CUDA graph; said once."""
        if recorded():
            self._journal.warn("monitor", RECORDED)
            return True
        return False

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
