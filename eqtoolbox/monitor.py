"""The monitor: a due step is caught, measured in isolation, and its records go to the sinks."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from eqtoolbox.budget import Budget
from eqtoolbox.capture import LossCapture
from eqtoolbox.eager import eager
from eqtoolbox.faithfulness import Faithfulness
from eqtoolbox.isolation import RandomState
from eqtoolbox.journal import Journal, OnError
from eqtoolbox.objective import LossFunction, Objective, Parameters
from eqtoolbox.probe import Probe, Scheduled
from eqtoolbox.record import Record
from eqtoolbox.runner import Runner, synchronize
from eqtoolbox.scaling import gradient_scale
from eqtoolbox.sink import Sink
from eqtoolbox.snapshot import Snapshot, gradients, optimizer_state, parameter_groups, trainable

F = TypeVar("F", bound=Callable[..., Any])


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
        self.step = step
        self.attached_at = attached_at
        self._capture = LossCapture(model, loss_fn, criterion, called)
        self._probe_batch = probe_batch
        self._probe_random = RandomState.seeded(seed)
        self._journal = Journal(sinks, on_error, segment)
        self._budget = Budget(budget, [s.probe.name for s in self.probes])
        self._runner = Runner(
            model, [s.probe for s in self.probes], seed, self._budget, self._journal
        )
        self._left_at: float | None = None  # clock when training was last left alone
        self._todo: list[Probe] = []
        self._before: Parameters | None = None
        self._memory: Parameters = {}  # of copies that only probes that keep nothing see
        self._noted: Parameters = {}  # gradients of optimizers that have stepped already
        self._missed: Exception | None = None  # why the step could not be caught
        self._scale = 1.0  # of a gradient scaler
        self._stepped: set[int] = set()  # optimizers that took the step that is being taken
        self._open = False
        self._unloaded = segment > 0  # a resumed run whose state was not given back yet
        self._faithful = Faithfulness(model, self._capture, self._journal)
        self._shapes: dict[str, torch.Size] | None = None  # of the parameters last measured
        self._loaded = False
        starts, ends = self._step_starts, self._step_ends
        if len(self.optimizers) > 1:
            starts, ends = self._one_starts, self._one_ends
        self._handles = [
            handle
            for o in self.optimizers
            for handle in (o.register_step_pre_hook(starts), o.register_step_post_hook(ends))
        ]
        self._capture.fail = self._failed
        self._arm()

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
        return self._capture.wrap(function)

    def observe(self, batch: Any, weight: float | None = None) -> None:
        """Tell a batch of the coming step, where `loss_fn=` was given to `attach`.

        Args:
            batch: for `loss_fn(model, batch)`.
            weight: of its loss in the gradient of the step; without, the losses of all batches
                observed before a step count equally and their mean is taken.
        """
        self._safely(self._capture.observe, batch, weight)

    @property
    def due(self) -> bool:
        """Whether the coming step is one to measure: what it evaluates is of interest."""
        return self._capture.armed

    def begin(self, loss_fn: LossFunction, batch: Any) -> None:
        """Say that the loop now evaluates `loss_fn(model, batch)` in its own code; then `end`."""
        self._safely(self._capture.begin, loss_fn, batch)

    def end(self, loss: Tensor | None) -> None:
        """Say what came out of the evaluation that `begin` told of; None where that is unknown."""
        self._safely(self._capture.end, loss)

    def autocast_inside(self, device: str, dtype: torch.dtype) -> None:
        """Say that the model's own `forward` enters this autocast, where no hook can see it."""
        self._capture.inside = (device, dtype)

    def count_from(self, step: int) -> None:
        """Give the coming optimizer step this number, where the training loop counts itself."""
        if step != self.step:
            self.step = step
            self._arm()

    def add_sink(self, sink: Sink) -> None:
        """Send records to one more place."""
        self._journal.add(sink)

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
        before = {n: p.detach().clone() for n, p in trainable(self.model).items()}
        snapshot = self._snapshot(before, None, dict(self.model.named_parameters()))
        written = [row for s in self.probes for row in self._runner.run(s.probe, snapshot)]
        self._journal.flush()
        if self._left_at is not None:
            self._left_at += time.perf_counter() - started
        return written

    def detach(self) -> None:
        """Take every hook off; the model and the optimizer are as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._capture.armed = False
        self._capture.forget()
        self._before, self._memory, self._noted = None, {}, {}

    def close(self) -> None:
        """Detach and finish the sinks. Calling it again does nothing."""
        attached = bool(self._handles)
        if attached and self._open and self._stepped:
            self._close_step()
        self.detach()
        if attached:
            self._earn()
            if self._budget.probing and self._budget.training:
                self._journal.step = max(self.step - 1, 0)
                self._journal.emit("cost/overhead", self._budget.overhead)
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
            "references": self._runner.references,
            "disabled": sorted(self._journal.disabled),
            "budget": self._budget.state_dict(),
            "halved": sorted(self._runner.halved),
            "checked": self._faithful.checked,
            "summed": self._capture.summed,
            "shapes": {n: list(s) for n, s in (self._shapes or {}).items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            KeyError: `state` is no monitor state.
        """
        missing = {"step", "references", "disabled", "budget"} - state.keys()
        if missing:
            raise KeyError(f"expected the state of a Monitor, got one without {sorted(missing)}")
        self.step, self._unloaded = state["step"], False
        self._runner.references = dict(state["references"])
        self._runner.halved = set(state.get("halved", ()))
        self._journal.disabled = set(state["disabled"])
        self._budget.load_state_dict(state["budget"])
        self._faithful.checked = bool(state.get("checked", False))
        self._capture.summed = bool(state.get("summed", False))
        self._loaded, shapes = True, state.get("shapes", {})
        self._shapes = {n: torch.Size(s) for n, s in shapes.items()} or None
        self._arm()

    # -- one optimizer step ---------------------------------------------------------------------

    def _arm(self) -> None:
        """Find out what is due at the coming step."""
        self._journal.step = self.step
        self._todo = self._due(self.step)
        if self._todo or self._capture.armed:
            self._capture.armed = bool(self._todo)

    def _due(self, step: int) -> list[Probe]:
        disabled, due = self._journal.disabled, []
        if "monitor" in disabled:
            return []
        for scheduled in self.probes:
            try:
                if scheduled.schedule(step) and scheduled.probe.name not in disabled:
                    due.append(scheduled.probe)
            except Exception as error:
                if scheduled.probe.name not in disabled:
                    self._journal.failed(scheduled.probe.name, error)
        return due

    @eager
    def _step_starts(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._todo:
            self._begin(optimizer)

    @eager
    def _step_ends(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        try:
            if self._todo:
                self._finish()
            elif self._left_at is None:
                self._left_at = time.perf_counter()
        finally:  # an interrupt from the keyboard passes, and the next step is counted right
            self._capture.unused = None
            self.step += 1
            self._arm()

    @eager
    def _one_starts(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """One of several optimizers starts."""
        if self._open and id(optimizer) in self._stepped:
            self._close_step()
        if not self._open:
            self._open = True
            if self._todo:
                self._begin(optimizer)
            elif self._capture.armed:
                self._capture.step_starts(self._unmoved)
            self._capture.armed = bool(self._todo) or bool(self._due(self.step + 1))
        self._capture.step_goes_on()

    @eager
    def _one_ends(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._capture.step_pauses()
        self._stepped.add(id(optimizer))
        if self._before is not None:
            try:
                self._note_gradients(optimizer)
            except Exception as error:
                self._failed(error)
        if len(self._stepped) == len(self.optimizers):
            self._close_step()

    def _close_step(self) -> None:
        self._open = False
        self._stepped.clear()
        if not self._todo:
            self._capture.drop()
        self._step_ends(None, (), {})

    def _begin(self, optimizer: Any) -> None:
        """The parameters are still theta_t: keep what will be gone after the step."""
        self._earn()
        try:
            self._capture.step_starts(self._unmoved)
            if any(self._budget.affords(probe.name) for probe in self._todo):
                self._scale = gradient_scale()
                self._before = self._copied()
        except Exception as error:
            self._missed = error
            self._failed(error)

    def _copied(self) -> Parameters:
        """The parameters now, in memory of the last such copy where no probe can still hold it.

        At every step, new memory would cost more than the copy: its pages come one by one.
        """
        now = {n: p.detach() for n, p in trainable(self.model).items()}
        if any(probe.evaluates for probe in self._todo):
            return {n: p.clone() for n, p in now.items()}
        kept = self._memory
        if kept.keys() != now.keys() or any(not _alike(kept[n], p) for n, p in now.items()):
            self._memory = kept = {n: torch.empty_like(p) for n, p in now.items()}
        torch._foreach_copy_(list(kept.values()), list(now.values()))
        return dict(kept)

    def _finish(self) -> None:
        """The step is over: measure it and forget it."""
        if self._before is not None:
            synchronize(self.model)
        self._earn()
        try:
            before, self._before = self._before, None
            if self._missed is not None:
                for probe in self._todo:
                    self._runner.fail(probe, self._missed)
                return
            named = dict(self.model.named_parameters())
            self._context(named)
            due = self._runner.affordable(self._todo, caught=before is not None)
            if before is not None:
                self._measure(due, before, named)
            self._journal.succeeded("monitor")
        except Exception as error:
            self._failed(error)
        finally:
            self._noted, self._scale, self._missed = {}, 1.0, None
            self._capture.drop()
            self._journal.flush()
            self._left_at = time.perf_counter()

    def _earn(self) -> None:
        """Training took the time since it was last left alone."""
        now = time.perf_counter()
        if self._left_at is not None:
            self._budget.earn(now - self._left_at)
        self._left_at = now

    def _unmoved(self) -> bool:
        """Whether the parameters are still those from before the step."""
        if self._before is None:
            return True
        current = trainable(self.model)
        return all(torch.equal(p, current[n]) for n, p in self._before.items() if n in current)

    def _note_gradients(self, optimizer: Any) -> None:
        """Keep the gradients of one of several optimizers: they may be gone at the end."""
        names = {id(p): n for n, p in trainable(self.model).items()}
        for group in optimizer.param_groups:
            for p in group["params"]:
                if id(p) in names and p.grad is not None:
                    self._noted[names[id(p)]] = p.grad.detach().to_dense().clone()

    def _safely(self, act: Callable[..., None], *given: Any) -> None:
        """What goes wrong here is no reason to stop training."""
        try:
            act(*given)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._journal.failed("monitor", error)

    # -- measuring ------------------------------------------------------------------------------

    def _measure(
        self, probes: list[Probe], before: Parameters, named: dict[str, nn.Parameter]
    ) -> None:
        # GAN loops take gradients off and on inside a step
        after = {n: p.detach() for n, p in named.items() if n in before}
        snapshot = self._snapshot(before, after, named)
        self._parameters_changed(before)
        self._applied(before, after)
        if not self._faithful.checked:
            self._faithful.checked = True
            self._warn_of_lost_state()
            if self._faithful.check(snapshot):
                snapshot = self._snapshot(before, after, named)
        for probe in probes:
            self._runner.run(probe, snapshot)
        if probes:
            self._journal.emit("cost/overhead", self._budget.overhead)

    def _snapshot(
        self, before: Parameters, after: Parameters | None, named: dict[str, nn.Parameter]
    ) -> Snapshot:
        training = self._capture.training(self._scale)
        measured: Objective | None = training
        if self._probe_batch is not None:
            measured = self._capture.on(self._probe_batch, self._probe_random)
        if not self._faithful.harmless(measured, before):
            training = measured = None
        known = dict.fromkeys(type(o).__name__ for o in self.optimizers)
        return Snapshot(
            step=self.step,
            before=before,
            after=after,
            gradient=None if self._capture.moved else gradients(named, self._noted),
            groups=parameter_groups(self.optimizers, named),
            optimizer="+".join(known),
            state=optimizer_state(self.optimizers, named),
            training=training,
            measured=measured,
            why_no_loss="" if measured else self._capture.why_none(),
        )

    def _context(self, named: dict[str, nn.Parameter]) -> None:
        """Loss and learning rate of the step."""
        loss = self._capture.value(self._scale)
        if loss is not None:
            self._journal.emit("training/loss", loss)
        groups = parameter_groups(self.optimizers, named)
        rates = {g.lr for g in groups if g.names and math.isfinite(g.lr)}
        if len(rates) == 1:
            self._journal.emit("training/learning_rate", rates.pop())

    def _applied(self, before: Parameters, after: Parameters) -> None:
        """Whether the step moved anything: gradient scalers skip steps inside fused optimizers."""
        moved = any(not torch.equal(p, after[n]) for n, p in before.items() if n in after)
        note = "" if moved else "no parameter changed: skipped, or a learning rate of zero"
        self._journal.emit("training/applied", float(moved), note=note)

    def _warn_of_lost_state(self) -> None:
        if self._unloaded:
            self._journal.warn(
                "monitor",
                "resume=True, but load_state_dict() was not called: steps go on after the last "
                "recorded one, and drift is counted from here",
            )

    def _parameters_changed(self, before: Parameters) -> None:
        """Start references anew where parameters were added, unfrozen, frozen or reshaped."""
        shapes = {n: p.shape for n, p in before.items()}
        known, self._shapes = self._shapes, shapes
        if known is None or known == shapes or not self._runner.references:
            return
        loaded, self._loaded = self._loaded, False  # names may be others where a run goes on
        if loaded and list(known.values()) == list(shapes.values()):
            return
        gone, new = known.keys() - shapes.keys(), shapes.keys() - known.keys()
        self._runner.references.clear()
        self._journal.event(
            "warning",
            "monitor",
            f"the trainable parameters changed ({len(new)} more, {len(gone)} fewer): what is "
            "measured since the start, such as drift, is counted from this step on",
        )


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def monitors_of(optimizer: torch.optim.Optimizer) -> Iterable[Monitor]:
    """Monitors attached to this optimizer."""
    hooks = getattr(optimizer, "_optimizer_step_post_hooks", {}).values()
    owners = (getattr(hook, "__self__", None) for hook in hooks)
    return [owner for owner in owners if isinstance(owner, Monitor)]
