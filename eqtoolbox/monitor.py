"""The monitor: a due step is caught, measured in isolation, and its records go to the sinks."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from eqtoolbox.account import Account
from eqtoolbox.budget import LOSS, Budget
from eqtoolbox.capture.loss_capture import LossCapture
from eqtoolbox.capture.step import Step, closure_of
from eqtoolbox.capture.watched import Watched
from eqtoolbox.catch import Catch
from eqtoolbox.checkpoint import check_state
from eqtoolbox.clock import Clock
from eqtoolbox.eager import eager, untraced
from eqtoolbox.expect.fit import fitted
from eqtoolbox.expect.kinds import Natural, Positive
from eqtoolbox.interrupts import Gate
from eqtoolbox.interrupts import told as message_of
from eqtoolbox.journal import Journal, OnError
from eqtoolbox.objective import LossFunction
from eqtoolbox.probe import Probe, Scheduled
from eqtoolbox.record import Record
from eqtoolbox.replay.scope import current
from eqtoolbox.runner import Runner, synchronize
from eqtoolbox.schedule import following
from eqtoolbox.sink import Sink
from eqtoolbox.time_limit import TimeLimit, Timeout
from eqtoolbox.told import Decorated, Device, Evaluated, Place

F = TypeVar("F", bound=Callable[..., Any])

FORKED = (
    "this process was forked from the one that attached the monitor: nothing is measured here; "
    "attach in this process to watch it"
)


class Monitor:
    """Watches one model and its optimizer or optimizers; made by `eqtoolbox.attach`.

    Each call of `optimizer.step()` is one step; of several optimizers, one step is over when each
    has stepped once, or one of them steps again. On a due step the parameters before and after,
    the gradient and the batches are frozen into a `Snapshot`, the due probes measure it, and their
    records are written. Training is bit-identical with and without.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        probes: Sequence[Scheduled],
        loss_fn: LossFunction | None = None,
        criterion: nn.Module | None = None,
        probe_batch: Any = None,
        budget: float | None = 0.05,
        sinks: Sequence[Sink] = (),
        seed: int = 0,
        segment: int = 0,
        step: int = 0,
        on_error: OnError = "warn",
        probe_timeout: Timeout = "auto",
        attached_at: str = "",
        called: nn.Module | None = None,
    ) -> None:
        one = isinstance(optimizer, torch.optim.Optimizer)
        self.model = model
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            (optimizer,) if one else tuple(optimizer)  # type: ignore[arg-type, assignment]
        )
        self.optimizer = self.optimizers[0]
        self.probes = tuple(probes)
        self.step = self._first = step
        self.attached_at = attached_at
        self._watched = Watched(model, self.optimizers, criterion)
        self._capture = LossCapture(self._watched, loss_fn, criterion, called)
        self._journal = Journal(sinks, on_error, segment)
        self._budget = Budget(budget, [s.probe.name for s in self.probes])
        self._account = Account(self.optimizers, self._budget, self._journal)
        self._runner = Runner(model, seed, self._journal, TimeLimit(probe_timeout))
        self._waiting = self._capture.pending.waiting
        self._waiting.tell = self._account.stalled
        self._clock = Clock(self._budget, self._capture.stopwatch)
        self._todo: list[Probe] = []  # due at the coming step
        self._run: list[Probe] = []  # and paid for
        self._catches = False  # whether the coming step is caught
        self._next = 0.0  # the step up to which nothing is due after the coming one
        self._taken = Step(self._watched)
        self._stepped: set[int] = set()  # optimizers that took the step that is being taken
        self._open = False
        self._gate = Gate()  # for signals that come while a step is measured
        self._catch = Catch(
            self._watched,
            self._capture,
            self._taken,
            self._journal,
            self._runner,
            self._account,
            probe_batch=probe_batch,
            seed=seed,
            resumed=segment > 0,
        )
        self._several = len(self.optimizers) > 1
        ends = self._one_ends if self._several else self._step_ends
        self._handles = [o.register_step_post_hook(ends) for o in self.optimizers]
        self._starts: list[Any] = []  # hooks that only steps which are caught have
        self._capture.fail = self._failed
        self._arm()

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, and of what is saved: a run has one monitor, see `__setstate__`."""
        return {"model": self.model, "optimizer": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy watches nothing and is detached; what a run resumes from is `state_dict`."""
        self.__init__(**state, probes=())  # type: ignore[misc]
        self.detach()

    def __repr__(self) -> str:
        names = ", ".join(s.probe.name for s in self.probes)
        state = "attached" if self._handles else "detached"
        return f"Monitor({type(self.model).__name__}, {names}; step {self.step}, {state})"

    # -- what a user calls ----------------------------------------------------------------------

    def loss(self, function: F) -> F:
        """Decorate `loss_fn(model, batch, ...) -> loss`, so that probes can evaluate it.

        Returns a function that does exactly the same. The loss may also be the first of a tuple,
        an attribute `.loss` or a key `"loss"` of what the function returns. Probes call it again:
        it should do nothing but compute. A compiled loss is decorated on the outside:
        `monitor.loss(torch.compile(loss_fn))`.
        """
        fitted("function", function, Decorated)
        return self._capture.wrap(function)

    def observe(self, batch: Any, weight: float | None = None) -> None:
        """Tell a batch of the coming step, where `loss_fn=` was given to `attach`.

        Args:
            batch: for `loss_fn(model, batch)`.
            weight: of its loss in the gradient of the step; without, the losses of all batches
                observed before a step count equally and their mean is taken.

        Raises:
            ValueError: no function is known that takes the batch.
        """
        if not self.takes_batches and self._capture.criterion is None:
            raise ValueError(
                "observe(batch) expected a loss function that takes the batch, got none; give "
                "loss_fn= to attach, or decorate yours with @monitor.loss"
            )
        if weight is not None:
            weight = fitted("weight", weight, Positive)
        self._safely(self._capture.observe, batch, weight)

    @property
    def takes_batches(self) -> bool:
        """Whether a loss function is known that evaluates what is observed."""
        return self._capture.takes_batches

    @property
    def due(self) -> bool:
        """Whether the coming step is one to measure: what it evaluates is of interest."""
        return self._capture.armed

    def begin(self, loss_fn: LossFunction, batch: Any) -> None:
        """Say that the loop now evaluates `loss_fn(model, batch)` in its own code; then `end`."""
        fitted("loss_fn", loss_fn, LossFunction)
        self._safely(self._capture.begin, loss_fn, batch)

    def end(self, loss: Tensor | None) -> None:
        """Say what came out of the evaluation that `begin` told of; None where that is unknown."""
        fitted("loss", loss, Evaluated)
        self._safely(self._capture.end, loss)

    def autocast_inside(self, device: str, dtype: torch.dtype) -> None:
        """Say that the model's own `forward` enters this autocast, where no hook can see it."""
        fitted("device", device, Device)
        self._capture.inside = (device, fitted("dtype", dtype, torch.dtype))

    def loss_is_given(self, decorate: str, observed: str) -> None:
        """Say in what words a program gives its loss that was handed no monitor, but a callback."""
        self._capture.decorate = fitted("decorate", decorate, str)
        self._capture.observed = fitted("observed", observed, str)

    def count_from(self, step: int) -> None:
        """Give the coming optimizer step this number, where the training loop counts itself."""
        step = fitted("step", step, Natural)
        if step != self.step:
            self._first += step - self.step
            self.step = step
            self._arm()

    def add_sink(self, sink: Sink) -> None:
        """Send records to one more place."""
        self._journal.add(fitted("sink", sink, Place))

    @eager
    def probe_now(self) -> list[Record]:
        """Measure all probes at the present parameters, whatever is due, and return the records.

        Raises:
            ValueError: no batch is known; give `probe_batch` or call `observe(batch)` first.
        """
        if self._catch.probe_batch is None and self._capture.training() is None:
            raise ValueError(
                "probe_now() needs a batch: give probe_batch= to attach, or call "
                "monitor.observe(batch) with loss_fn= first"
            )
        started = time.perf_counter()
        before = {n: p.detach().clone() for n, p in self._watched.trainable().items()}
        with self._gate:
            snapshot = self._catch.snapshot(self.step, before, None, self._watched.named())
            written = [row for s in self.probes for row in self._runner.run(s.probe, snapshot)]
        self._budget.spend(*self._runner.take(), 0.0)
        self._journal.flush()
        self._clock.apart(started)
        return written

    def detach(self) -> None:
        """Take every hook off; the model and the optimizer are as they were."""
        self._watch_starts(False)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._capture.armed, self._waiting.far = False, 0  # never reached
        self._capture.forget()
        self._taken.forget()

    def close(self) -> None:
        """Detach and finish the sinks. Calling it again does nothing."""
        self._close(told=False)

    def _close(self, told: bool) -> None:
        attached = bool(self._handles)
        if attached and self._open and self._stepped:
            self._close_step()
        self.detach()
        if attached and self.probes and not told:
            steps, measured = self.step - self._first, bool(self._budget.setup)
            self._safely(self._account.ended, self._waiting, steps, measured)
        if attached:
            self._clock.earn()
            if self._budget.setup:
                self._journal.step = max(self.step - 1, 0)
                self._account.costs()
        self._journal.close()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._journal.event("error", "training", message_of(error))
        self._close(told=error is not None)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same records: step, references, findings."""
        return self._catch.state_dict() | {
            "step": self.step,
            "references": self._runner.references,
            "disabled": sorted(self._journal.disabled),
            "budget": self._budget.state_dict(),
            "halved": sorted(self._runner.halved),
            "summed": self._capture.pending.summed,
            "skipped": self._account.state_dict(),
            "lost": self._account.lost,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            KeyError, TypeError, ValueError: `state` is no monitor state; nothing of it is taken.
        """
        check_state(state)
        self._first += state["step"] - self.step
        self.step = state["step"]
        self._catch.load_state_dict(state)
        self._runner.references = dict(state["references"])
        self._runner.halved = set(state.get("halved", ()))
        self._journal.disabled = set(state["disabled"])
        self._budget.load_state_dict(state["budget"])
        self._capture.pending.summed = bool(state.get("summed", False))
        self._account.load_state_dict(state.get("skipped", {}))
        self._account.lost = int(state.get("lost", 0))
        self._arm()

    # -- one optimizer step ---------------------------------------------------------------------

    def _arm(self) -> None:
        """Find out what is due at the coming step, and what of it is paid for."""
        self._journal.step = self.step
        self._todo = self._due(self.step)
        if self._todo:
            if self._clock.running:
                self._clock.earn()
            self._run = [probe for probe in self._todo if self._budget.affords(probe.name)]
            self._catches = bool(self._run) or self._budget.affords(LOSS)
        elif self._catches:
            self._run, self._catches = [], False
        self._next = min(
            (following(s.schedule, self.step + 1) for s in self.probes), default=math.inf
        )
        self._capture.replays = (
            self._several
            or not self._catch.faithful.checked
            or any(probe.evaluates for probe in self._run)
        )
        if self._catches or self._capture.armed:
            self._capture.armed = self._catches
        if self._catches and self._capture.replays:
            self._capture.expect_check()
        if self._handles:
            self._watch_starts(self._catches or self._several)

    def _watch_starts(self, wanted: bool) -> None:
        """Have hooks that the optimizers call before they step, or have none."""
        if wanted and not self._starts:
            hook = self._one_starts if self._several else self._step_starts
            self._starts = [o.register_step_pre_hook(hook) for o in self.optimizers]
        elif self._starts and not wanted:
            for handle in self._starts:
                handle.remove()
            self._starts = []

    def _due(self, step: int) -> list[Probe]:
        disabled = self._journal.disabled
        if "monitor" in disabled:
            return []
        if self._journal.elsewhere:
            self._journal.disable("monitor", FORKED)
            return []
        due = []
        for scheduled in self.probes:
            try:
                if scheduled.schedule(step) and scheduled.probe.name not in disabled:
                    due.append(scheduled.probe)
            except BaseException as error:
                if scheduled.probe.name not in disabled:
                    self._journal.failed(scheduled.probe.name, error)
        return due

    @eager
    def _step_starts(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        if not self._catches or current() is not None:
            return None
        self._begin(closure=callable(closure_of(args, kwargs)))
        return self._taken.asked(optimizer, args, kwargs, self._inside)

    @untraced
    def _step_ends(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if current() is not None:  # a loss that is evaluated again steps an optimizer itself
            return
        started = time.perf_counter()
        if self._todo or self.step + 1 >= self._next:
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
        caught = self._catches
        with self._gate:
            try:
                if caught:
                    self._finish()
                elif self._todo:
                    self._account.skip(self._todo)
                    self._journal.flush()
                self._clock.begin(started)
            finally:  # an interrupt passes, and the next step is counted right
                self._gate.holding = True
                self._capture.unused = None
                self._waiting.losses, self._waiting.mark = 0, ()
                self.step += 1
                self._arm()
        if not caught:
            self._clock.idle(started)

    @eager
    def _one_starts(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """One of several optimizers starts."""
        if current() is not None:
            return None
        if self._open and id(optimizer) in self._stepped:
            self._close_step()
        if not self._open:
            self._open = True
            if self._catches:
                self._begin(closure=True)
            elif self._capture.armed:
                self._capture.pending.step_starts(self._taken.unmoved)
            self._capture.armed = self._catches or bool(self._due(self.step + 1))
        self._capture.pending.step_goes_on()
        return self._taken.asked(optimizer, args, kwargs, self._inside)

    @eager
    def _one_ends(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if current() is not None:
            return
        self._capture.pending.step_pauses()
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self.optimizers):
            self._close_step()

    def _close_step(self) -> None:
        self._open = False
        self._stepped.clear()
        if not self._catches:
            self._capture.drop()
        self._step_ends(None, (), {})

    def _begin(self, closure: bool) -> None:
        """The parameters are still theta_t; a closure may evaluate the loss at others."""
        started = self._clock.earn()
        try:
            self._capture.pending.step_starts(self._taken.unmoved)
            if self._run or closure:
                self._capture.look_ahead(self._catch.probe_batch)
                self._taken.keep(reuse=not any(probe.evaluates for probe in self._run))
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
                for probe in self._todo:
                    self._runner.fail(probe, self._taken.missed)
                return
            named = self._watched.named()
            self._account.lose(*self._capture.pending.skipped)
            self._account.step(self._capture.value(self._taken.scale), named)
            if self._run and self._taken.before is not None:
                self._catch.measure(self.step, self._run, self._taken.before, named)
            self._account.skip([probe for probe in self._todo if probe not in self._run])
            self._journal.succeeded("monitor")
        except BaseException as error:
            self._failed(error)
        finally:
            self._gate.holding = True
            self._taken.over()
            self._capture.drop()
            self._pay(started)

    def _pay(self, started: float) -> None:
        """Settle what the step took, and say what the monitor took so far."""
        spent, once = self._runner.take()
        ended = self._clock.pay(started, spent, once)
        if spent:
            self._account.costs()
        self._journal.flush()
        self._clock.resume(ended)

    def _safely(self, act: Callable[..., None], *given: Any) -> None:
        """What goes wrong here is no reason to stop training."""
        try:
            act(*given)
        except BaseException as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self._journal.failed("monitor", error)


def monitors_of(optimizer: torch.optim.Optimizer) -> Iterable[Monitor]:
    """Monitors attached to this optimizer."""
    hooks = getattr(optimizer, "_optimizer_step_post_hooks", {}).values()
    owners = (getattr(hook, "__self__", None) for hook in hooks)
    return [owner for owner in owners if isinstance(owner, Monitor)]
