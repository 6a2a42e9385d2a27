"""The monitor: the course of a training, and what its user says to it and asks of it."""

import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from eqtoolbox.expect import notebook
from eqtoolbox.expect.fit import fitted
from eqtoolbox.expect.kinds import Positive
from eqtoolbox.record.record import Record
from eqtoolbox.record.sink import Sink
from eqtoolbox.replay.eager import eager
from eqtoolbox.replay.objective import LossFunction
from eqtoolbox.replay.tree import map_tensors
from eqtoolbox.watch.checkpoint import check_state, meet
from eqtoolbox.watch.course import Course
from eqtoolbox.watch.held_out import held_out
from eqtoolbox.watch.interrupts import told as message_of
from eqtoolbox.watch.probe import Probe
from eqtoolbox.watch.told import Decorated, Device, Evaluated, Place

F = TypeVar("F", bound=Callable[..., Any])


class Monitor(Course):
    """Watches one model and its optimizer or optimizers; made by `eqtoolbox.attach`.

    Each call of `optimizer.step()` is one step; of several optimizers, one step is over when each
    has stepped once, or one of them steps again. On a due step the parameters before and after,
    the gradient and the batches are frozen into a `Snapshot`, the due probes measure it, and their
    records are written. Training is bit-identical with and without.
    """

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, and of what is saved: a run has one monitor, see `__setstate__`."""
        return {"model": self.model, "optimizer": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy watches nothing and is detached; what a run resumes from is `state_dict`."""
        self.__init__(**state, probes=())  # type: ignore[misc]
        self.detach()

    def __repr__(self) -> str:
        names = ", ".join(s.probe.name for s in self.probes)
        state = "attached" if self.attached else "detached"
        return f"Monitor({type(self.model).__name__}, {names}; step {self.step}, {state})"

    _repr_html_ = notebook.text

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

    def add_sink(self, sink: Sink) -> None:
        """Send records to one more place; of several processes the first one's."""
        if self._world.first:
            self._journal.add(fitted("sink", sink, Place))

    def pass_on(self, act: Callable[[Sink], Any]) -> None:
        """Have every sink do something; one that fails is disabled, after one warning."""
        self._settle()
        self._journal.each(act)

    def latest(self, name: str) -> float | None:
        """The newest certified number of a record, for pruners and schedulers; None before any.

        Args:
            name: of the record, such as "curvature/stability".
        """
        self._settle()
        newest = self._journal.latest.get(fitted("name", name, str))
        return None if newest is None else newest.value

    @eager
    def probe_now(self) -> list[Record]:
        """Measure all probes at the present parameters, whatever is due, and return the records.

        One of several processes does it on its own share; where they hold shards, all do it.

        Raises:
            ValueError: no batch is known; give `probe_batch` or call `observe(batch)` first.
        """
        if self._catch.probe_batch is None and self._capture.training() is None:
            raise ValueError(
                "probe_now() needs a batch: give probe_batch= to attach, or call "
                "monitor.observe(batch) with loss_fn= first"
            )
        self._settle()
        started = time.perf_counter()
        before = self._watched.copied()
        with self._gate:
            snapshot = self._catch.snapshot(self.step, before, None, self._watched.named())
            written = [row for s in self.probes for row in self._runner.run(s.probe, snapshot)]
        self._budget.spend(*self._runner.take(), 0.0)
        self._journal.flush()
        self._clock.apart(started)
        return written

    def validate(self, batch: Any, loss_fn: LossFunction | None = None) -> list[Record]:
        """Measure on a batch that the model does not train on what needs no optimizer step.

        These are the probes in evaluation mode, such as the equivariance error. Their records are
        called `validation.<probe>/...`; they are measured whenever this is called, and the time
        counts as the monitor's. The model, its mode, gradients and random streams stay as they are.

        Args:
            batch: best the same each time, so that the numbers can be compared.
            loss_fn: `loss_fn(model, batch)`; that of the training where it takes such a batch.

        Returns:
            The records; none where no probe is of this kind, or the monitor is closed.
        """
        if loss_fn is not None:
            fitted("loss_fn", loss_fn, LossFunction)
        probes = held_out(s.probe for s in self.probes)
        written: list[Record] = []
        if self._handles and probes:
            self._safely(self._validate, batch, loss_fn, probes, written)
        return written

    @eager
    def _validate(
        self, batch: Any, loss_fn: LossFunction | None, probes: list[Probe], written: list[Record]
    ) -> None:
        self._settle()
        started = self._clock.earn()
        with torch.inference_mode(False), self._gate:  # what is made in it has no derivatives
            batch = map_tensors(lambda x: x.clone() if x.is_inference() else x, batch)
            snapshot = self._catch.held_out(self.step, self._watched.copied(), batch, loss_fn)
            disabled = self._journal.disabled
            for probe in probes:
                if probe.name not in disabled:
                    written += self._runner.run(probe, snapshot)
        self._runner.take()
        self._journal.flush()
        self._clock.resume(started)

    @property
    def run_dir(self) -> Path | None:
        """The directory of the records, as it was taken; None where none is kept."""
        return self._journal.home

    @property
    def run(self) -> Any:
        """The run as its directory holds it now, an `eqtoolbox.Run`; ValueError without one."""
        self._settle()
        if self._journal.reads is None:
            raise ValueError("there is no run to read; give attach(run_dir=...) a directory")
        return self._journal.reads()

    def detach(self) -> None:
        """Take every hook off; the model and the optimizer are as they were."""
        self._settle()
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
        attached = self.attached
        if attached and self._open and self._stepped:
            self._close_step()
        self.detach()
        self._world.close()
        if attached and self.probes and not told:
            ended = self._waiting, self.step - self._first, self._budget.measured
            self._safely(self._account.ended, *ended)
        if attached:
            self._clock.earn()
            if self._budget.measured and self._world.first:
                self._journal.step = max(self.step - 1, 0)
                self._catch.vitals.losses(self._journal.step)
                self._account.settled(self._catch.vitals.samples)
                said = self._account.summary(self.step - self._first)
                with suppress(ValueError, OSError):  # of a stream that is closed
                    print(f"eqtoolbox: {said}", file=sys.stderr)
        self._journal.close()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._journal.event("error", "training", message_of(error))
        self._close(told=error is not None)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same records: step, references, findings."""
        self._settle()
        return self._catch.state_dict() | {
            "step": self.step,
            "references": self._runner.state_dict(),
            "disabled": sorted(self._journal.disabled),
            "budget": self._budget.state_dict(),
            "halved": sorted(self._runner.halved),
            "summed": self._capture.pending.summed,
            "skipped": self._account.state_dict(),
            "lost": self._account.lost,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; where several processes train, all of them do.

        Raises:
            KeyError, TypeError, ValueError: `state` is no monitor state; nothing of it is taken.
        """
        check_state(state)
        self._settle()
        self._safely(meet, self._world, self._journal)
        self._first += state["step"] - self.step
        self.step = state["step"]
        self._catch.load_state_dict(state)
        self._runner.load_state_dict(state["references"], (s.probe for s in self.probes))
        self._runner.halved = set(state.get("halved", ()))
        self._journal.disabled = set(state["disabled"])
        self._budget.load_state_dict(state["budget"])
        self._capture.pending.summed = bool(state.get("summed", False))
        self._account.load_state_dict(state.get("skipped", {}), int(state.get("lost", 0)))
        self._arm()


def monitors_of(optimizer: torch.optim.Optimizer) -> Iterable[Monitor]:
    """Monitors attached to this optimizer."""
    hooks = getattr(optimizer, "_optimizer_step_post_hooks", {}).values()
    owners = (getattr(hook, "__self__", None) for hook in hooks)
    return [owner for owner in owners if isinstance(owner, Monitor)]
