"""The monitor: a due step is caught, measured in isolation, and its records go to the sinks."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import nn

from eqtoolbox.budget import Budget
from eqtoolbox.capture import LossCapture, check_batch
from eqtoolbox.isolation import RandomState, isolated
from eqtoolbox.journal import Journal, OnError
from eqtoolbox.objective import LossFunction, Objective, Parameters
from eqtoolbox.probe import Measurement, Probe, Scheduled, record
from eqtoolbox.record import Record, Status
from eqtoolbox.sink import Sink
from eqtoolbox.snapshot import (
    NotApplicable,
    Snapshot,
    gradients,
    optimizer_state,
    parameter_groups,
    trainable,
)

F = TypeVar("F", bound=Callable[..., Any])

CHECK = "monitor/closure_grad_cos"
MIN_GRADIENT_COSINE = 0.99  # replayed against training gradient; below it the loss is another


class Monitor:
    """Watches one model and one optimizer; made by `eqtoolbox.attach`.

    Each call of `optimizer.step()` is one step. On a due step the parameters before and after,
    the gradient and the batch are frozen into a `Snapshot`, the due probes measure it, and their
    records are written. Training is bit-identical with and without.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
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
        attached_at: str = "",
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.probes = tuple(probes)
        self.step = step
        self.attached_at = attached_at
        self._capture = LossCapture(model, loss_fn, criterion)
        self._probe_batch = probe_batch
        self._probe_random = RandomState.seeded(seed)
        self._seed = seed
        self._journal = Journal(sinks, on_error, segment)
        self._budget = Budget(budget, [s.probe.name for s in self.probes])
        self._references: dict[str, Any] = {}
        self._left_at: float | None = None  # clock when training was last left alone
        self._todo: list[Probe] = []
        self._before: Parameters | None = None
        self._parameters = dict(model.named_parameters())  # of the step at hand
        self._memory: Parameters = {}  # of the copies that only probes that keep nothing see
        self._accumulated = 0  # losses caught since the last step
        self._unloaded = segment > 0  # a resumed run whose state was not given back yet
        self._checked = False
        self._handles = [
            optimizer.register_step_pre_hook(self._step_starts),
            optimizer.register_step_post_hook(self._step_ends),
        ]
        self._capture.install()
        self._arm()

    def __repr__(self) -> str:
        names = ", ".join(s.probe.name for s in self.probes)
        state = "attached" if self._handles else "detached"
        return f"Monitor({type(self.model).__name__}, {names}; step {self.step}, {state})"

    # -- what a user calls ----------------------------------------------------------------------

    def loss(self, function: F) -> F:
        """Decorate `loss_fn(model, batch, ...) -> loss`, so that probes can evaluate it.

        Returns a function that does exactly the same. The loss may also be the first of a tuple,
        an attribute `.loss` or a key `"loss"` of what the function returns.
        """
        return self._capture.wrap(function)

    def observe(self, batch: Any) -> None:
        """Tell the batch of the coming step, where `loss_fn=` was given to `attach`."""
        self._capture.observe(batch)

    def probe_now(self) -> list[Record]:
        """Measure all probes at the present parameters, whatever is due, and return the records.

        Raises:
            ValueError: no batch is known; give `probe_batch` or call `observe(batch)` first.
        """
        if self._probe_batch is None and self._capture.training() is None:
            raise ValueError(
                "probe_now() needs a batch: give probe_batch= to attach, or call "
                "monitor.observe(batch) with loss_fn= first"
            )
        started = time.perf_counter()
        self._parameters = dict(self.model.named_parameters())
        before = {n: p.detach().clone() for n, p in trainable(self.model).items()}
        written = self._measure([p.probe for p in self.probes], before, None)
        if self._left_at is not None:
            self._left_at += time.perf_counter() - started
        return written

    def detach(self) -> None:
        """Take every hook off; the model and the optimizer are as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._capture.remove()
        self._capture.drop()
        self._capture.armed = False
        self._before, self._memory = None, {}

    def close(self) -> None:
        """Detach and finish the sinks. Calling it again does nothing."""
        attached = bool(self._handles)
        self.detach()
        if attached and self._budget.probing and self._budget.training:
            self._journal.step = max(self.step - 1, 0)
            self._emit("cost/overhead", self._budget.overhead)
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
            self._journal.event("error", "training", f"{type(error).__name__}: {error}")
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same records: step, references, budget."""
        return {
            "step": self.step,
            "references": self._references,
            "disabled": sorted(self._journal.disabled),
            "budget": self._budget.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            KeyError: `state` is no monitor state.
        """
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise KeyError(f"expected the state of a Monitor, got one without {sorted(missing)}")
        self.step, self._unloaded = state["step"], False
        self._references = dict(state["references"])
        self._journal.disabled = set(state["disabled"])
        self._budget.load_state_dict(state["budget"])
        self._arm()

    # -- one optimizer step ---------------------------------------------------------------------

    def _due(self) -> list[Probe]:
        return [s.probe for s in self.probes if self._is_due(s)]

    def _is_due(self, scheduled: Scheduled) -> bool:
        name = scheduled.probe.name
        if name in self._journal.disabled:
            return False
        try:
            return bool(scheduled.schedule(self.step))
        except Exception as error:
            self._journal.failed(name, error)
            return False

    def _arm(self) -> None:
        self._journal.step = self.step
        self._todo = self._due()
        self._capture.armed = bool(self._todo)

    def _step_starts(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        now = time.perf_counter()
        if self._left_at is not None:
            self._budget.earn(now - self._left_at)
        self._left_at = now
        if not self._todo:
            return
        try:
            self._accumulated, self._capture.evaluations = self._capture.evaluations, 0
            self._capture.stepping = True
            if any(self._budget.affords(probe.name) for probe in self._todo):
                self._parameters = dict(self.model.named_parameters())
                self._before = self._copied()
        except Exception as error:
            self._journal.failed("monitor", error)

    def _copied(self) -> Parameters:
        """The parameters now, in memory of the last such copy where no probe can still hold it.

        At every step, new memory would cost more than the copy: its pages come one by one.
        """
        now = {n: p.detach() for n, p in self._parameters.items() if p.requires_grad}
        if any(probe.evaluates for probe in self._todo):
            return {n: p.clone() for n, p in now.items()}
        kept = self._memory
        if kept.keys() != now.keys() or any(not _alike(kept[n], p) for n, p in now.items()):
            self._memory = kept = {n: torch.empty_like(p) for n, p in now.items()}
        torch._foreach_copy_(list(kept.values()), list(now.values()))
        return dict(kept)

    def _step_ends(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._before is not None:
            _synchronize(self.model)
        now = time.perf_counter()
        self._budget.earn(now - (self._left_at if self._left_at is not None else now))
        try:
            before, self._before = self._before, None
            if self._todo:
                self._context()
            if before is not None:
                after = {n: self._parameters[n].detach() for n in before}
                self._measure(self._affordable(self._todo), before, after)
            else:
                self._affordable(self._todo)
        except Exception as error:
            self._journal.failed("monitor", error)
        finally:
            self._capture.stepping, self._capture.evaluations = False, 0
            self._capture.drop()
            self.step += 1
            self._arm()
            self._left_at = time.perf_counter()

    def _affordable(self, due: list[Probe]) -> list[Probe]:
        """Due probes that the budget allows; the rest is recorded as skipped."""
        run = [probe for probe in due if self._budget.affords(probe.name)]
        for probe in due:
            if probe not in run:
                so_far, allowed = self._budget.overhead, self._budget.share
                limit = f"overhead {so_far:.1%} so far, budget {allowed:.1%}"
                self._write(_headline(probe, "skipped_budget", limit), probe)
        return run

    # -- measuring ------------------------------------------------------------------------------

    def _measure(
        self, probes: list[Probe], before: Parameters, after: Parameters | None
    ) -> list[Record]:
        written: list[Record] = []
        snapshot = self._snapshot(before, after)
        if after is not None:
            self._check(snapshot)
        for probe in probes:
            written += self._run(probe, snapshot)
        if after is not None and probes:
            written.append(self._emit("cost/overhead", self._budget.overhead))
        return written

    def _snapshot(self, before: Parameters, after: Parameters | None) -> Snapshot:
        moving = {n: self._parameters[n] for n in before}
        training = self._capture.training()
        measured: Objective | None = training
        if self._probe_batch is not None:
            measured = self._capture.on(self._probe_batch, self._probe_random)
        return Snapshot(
            step=self.step,
            before=before,
            after=after,
            gradient=gradients(moving) if self._capture.evaluations <= 1 else None,
            groups=parameter_groups(self.optimizer, self._parameters),
            optimizer=type(self.optimizer).__name__,
            state=optimizer_state(self.optimizer, self._parameters),
            training=training,
            measured=measured,
            why_no_loss="" if measured else self._capture.why_none(),
        )

    def _context(self) -> None:
        """Loss and learning rate of the step."""
        if self._capture.value is not None:
            self._emit("training/loss", float(self._capture.value))
        own = {id(p) for p in self._parameters.values()}
        groups = [g for g in self.optimizer.param_groups if any(id(p) in own for p in g["params"])]
        rates = {float(g["lr"]) for g in groups if "lr" in g}
        if len(rates) == 1:
            self._emit("training/learning_rate", rates.pop())

    def _check(self, snapshot: Snapshot) -> None:
        """Once: is a loss known, and is the replayed loss the one that trains?"""
        if self._checked:
            return
        self._checked = True
        if self._unloaded:
            self._journal.warn(
                "monitor",
                "resume=True, but load_state_dict() was not called: steps go on after the last "
                "recorded one, and drift is counted from here",
            )
        if snapshot.measured is None:
            self._journal.warn("monitor", snapshot.why_no_loss)
        why = ""
        if self._accumulated > 1:
            why = f"the loss ran {self._accumulated} times before the step: the last is measured"
        elif snapshot.gradient is None:
            why = "the optimizer evaluates the loss several times in one step"
        if why:
            row = Record(step=0, name=CHECK, value=math.nan, status="not_applicable", note=why)
            self._journal.write(row)
        elif snapshot.training is not None:
            try:
                self._check_replay(snapshot, snapshot.training)
            except Exception as error:
                self._journal.failed("monitor", error)

    def _check_replay(self, snapshot: Snapshot, objective: Objective) -> None:
        leaves = {n: p.clone().requires_grad_() for n, p in snapshot.before.items()}
        with objective.isolated():
            check_batch(objective.batch, self.model)
            replayed = torch.autograd.grad(
                objective.loss(leaves), list(leaves.values()), allow_unused=True
            )
        pairs = [
            (a.double(), snapshot.gradient[n].double())
            for n, a in zip(leaves, replayed, strict=True)
            if a is not None and snapshot.gradient is not None
        ]
        inner, one, two = (
            sum(float((x.conj() * y).real.sum()) for x, y in rows)
            for rows in (pairs, [(a, a) for a, _ in pairs], [(b, b) for _, b in pairs])
        )
        cosine = inner / math.sqrt(one * two) if one * two > 0 else math.nan
        if cosine < MIN_GRADIENT_COSINE:
            self._journal.warn(
                "monitor",
                f"the replayed loss has another gradient than the training step (cosine "
                f"{cosine:.3f}): probes measure a different loss. Likely causes: a regulariser "
                "outside the loss function, clipping by value, a random loss, another loss than "
                "the one given; put all of it into the function that monitor.loss decorates",
            )
        self._emit(CHECK, cosine)

    def _run(self, probe: Probe, snapshot: Snapshot) -> list[Record]:
        started = time.perf_counter()
        measurements: list[Measurement] = []
        rng = self._generator(probe)
        problem: Measurement | None = None
        try:
            known = probe.name in self._references
            with self._isolated(snapshot) if probe.evaluates or not known else nullcontext():
                if snapshot.measured is not None and (probe.evaluates or not known):
                    check_batch(snapshot.measured.batch, self.model)
                if not known:
                    self._references[probe.name] = probe.reference(snapshot, rng)
                measurements.extend(probe.measure(snapshot, self._references[probe.name], rng))
        except NotApplicable as reason:
            problem = _headline(probe, "not_applicable", str(reason))
        except FloatingPointError as reason:
            problem = _headline(probe, "non_finite", str(reason))
        except Exception as error:
            problem = _headline(probe, "failed", f"{type(error).__name__}: {error}")
            self._journal.failed(probe.name, error)
        else:
            self._journal.succeeded(probe.name)
        _synchronize(self.model)
        seconds = time.perf_counter() - started
        self._budget.spend(probe.name, seconds)
        rows = [*measurements, *([problem] if problem else [])]
        written = [self._write(row, probe, seconds) for row in rows]
        matvecs = sum(row.matvecs or 0 for row in measurements)
        written.append(self._emit(f"cost/seconds/{probe.name}", seconds, unit="s"))
        if matvecs:
            written.append(self._emit(f"cost/matvecs/{probe.name}", float(matvecs)))
        return written

    def _isolated(self, snapshot: Snapshot) -> Any:
        objective = snapshot.measured or snapshot.training
        return objective.isolated() if objective is not None else isolated(self.model)

    def _generator(self, probe: Probe) -> torch.Generator:
        """Own stream per (seed, step, probe): results do not depend on what else is measured."""
        digest = hashlib.sha256(f"{self._seed}/{self.step}/{probe.name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    # -- writing --------------------------------------------------------------------------------

    def _write(
        self, measurement: Measurement, probe: Probe, seconds: float | None = None
    ) -> Record:
        row = self._journal.write(record(measurement, probe, seconds))
        if measurement.vector is not None:
            self._journal.array(row.name, measurement.vector)
        return row

    def _emit(self, name: str, value: float, unit: str = "1") -> Record:
        return self._journal.write(Record(step=self.step, name=name, value=value, unit=unit))


def _headline(probe: Probe, status: Status, note: str) -> Measurement:
    return Measurement(probe.headline, math.nan, status=status, note=note)


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def _synchronize(model: nn.Module) -> None:
    """Wait for the accelerator, so that clocks tell what was really spent."""
    device = next((p.device for p in model.parameters()), None)
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def monitors_of(optimizer: torch.optim.Optimizer) -> Iterable[Monitor]:
    """Monitors attached to this optimizer."""
    hooks = getattr(optimizer, "_optimizer_step_post_hooks", {}).values()
    owners = (getattr(hook, "__self__", None) for hook in hooks)
    return [owner for owner in owners if isinstance(owner, Monitor)]
