"""The guard: tells when a step is past what the measured curvature bears, or caps its rate."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Literal

from eqtoolbox.act.edge import HEADLINE, SHARPNESS, STABILITY, EdgeReading, readable
from eqtoolbox.expect import notebook
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.fit import fitted
from eqtoolbox.expect.kinds import Natural, Positive
from eqtoolbox.record.record import Record
from eqtoolbox.record.sink import Sink
from eqtoolbox.replay.eager import eager
from eqtoolbox.watch.aloud import tell, warn
from eqtoolbox.watch.monitor import Monitor
from eqtoolbox.watch.nested import nested
from eqtoolbox.watch.snapshot import ParameterGroup, parameter_groups

LEAST = 1e-6  # of a rate: what is left of it while nothing is known
PATIENCE = 3  # steps that wait for a first measurement


@dataclass(kw_only=True)
class Tally:
    """What a guard saw and did; a checkpoint has its fields."""

    past: int | None = None  # the first measured step past the limit
    measured: int = 0  # steps with a number
    above: int = 0  # of these, past the limit
    capped: int = 0  # steps taken at a lower rate
    least: float = 1.0  # share of the rate that was left at most capped
    waited: int = 0  # steps that waited for a first measurement


class _Reads(Sink):
    """Hands the guard what the monitor records."""

    def __init__(self, guard: "Guard") -> None:
        self.guard = guard

    def write(self, record: Record) -> None:
        if record.name in (STABILITY, SHARPNESS, HEADLINE):
            self.guard._read(record)

    def close(self) -> None:
        self.guard._closed = True
        self.guard._release()


class Guard:
    """Guards the steps of one training; made by `eqtoolbox.act.guard`."""

    def __init__(self, monitor: Monitor, above: float, do: Literal["warn", "cap"]) -> None:
        self.monitor, self.limit, self.do = monitor, above, do
        self.seen = Tally()
        self.reading: EdgeReading | None = None  # the newest number
        self._names = readable(monitor, do)
        self._blind = ""  # why the newest measurement has no number
        self._closed = self._removed = False
        self._told: set[str] = set()
        self._own: list[tuple[dict[str, Any], Any]] = []  # groups with the rate of their user
        self._handles: list[Any] = []
        if do == "cap":
            optimizer = monitor.optimizer
            self._handles = [
                optimizer.register_step_pre_hook(self._step_starts),
                optimizer.register_step_post_hook(self._step_ends),  # after the monitor's own
            ]
        monitor.add_sink(_Reads(self))

    def __repr__(self) -> str:
        seen, lines = self.seen, [f"Guard({self.do}, above={self.limit:g}): {self.state}"]
        if self.reading is not None:
            lines.append(f"  newest   {self.reading}")
        if seen.past is not None:
            lines.append(f"  past     first at step {seen.past}; {seen.above} of {seen.measured}")
        if seen.capped:
            lines.append(f"  capped   {seen.capped} steps, to {seen.least:.2g} of the rate at most")
        return "\n".join(lines)

    _repr_html_ = notebook.text

    @property
    def state(self) -> str:
        """Whether it guards, and if not, why."""
        if self._removed:
            return "removed"
        if self._closed or not self.monitor.attached:
            return f"inert: the monitor is {'closed' if self._closed else 'detached'}"
        if self.reading is None:
            return f"blind: {self._blind}" if self._blind else "waiting for a first measurement"
        age = self.monitor.step - self.reading.step
        old = "guarding" if age <= 1 else f"guarding by a measurement {age} steps old"
        return f"{old}; {self._blind}" if self._blind else old

    def remove(self) -> None:
        """Guard no more; rates are the user's. Calling it again does nothing."""
        self._release()
        self._removed = True

    def __enter__(self) -> "Guard":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to cap its next step as this one would."""
        return {"seen": asdict(self.seen), "reading": self.reading and asdict(self.reading)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            KeyError, TypeError, ValueError: it is no such state; nothing of it is taken.
        """
        fitted("state", state, Mapping[str, Any])
        seen = Tally(**fitted("state['seen']", state["seen"], Mapping[str, Any]))
        fitted("state['seen']['capped']", seen.capped, Natural)
        known = fitted("state['reading']", state["reading"], Mapping[str, Any] | None)
        self.reading = None if known is None else EdgeReading.of(known)
        self.seen = seen

    def _release(self) -> None:
        """The optimizer as it was."""
        self._restore()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # -- what is measured -----------------------------------------------------------------------

    def _read(self, record: Record) -> None:
        """A probe said something, or why it said nothing, of the step that it measured."""
        if self._removed or (record.name not in self._names and record.name != HEADLINE):
            return
        if not math.isfinite(record.value):
            lost = f"step {record.step} has no {record.name}, {record.status}: {record.note}"
            self._blind = lost.rstrip(": ")
            return
        if record.name == HEADLINE:
            return
        self._blind = ""
        self.reading = reading = EdgeReading(
            step=record.step,
            name=record.name,
            value=record.value,
            error=record.stderr or 0.0,
            rates=tuple(group.lr for group in parameter_groups(self.monitor.optimizers, {})),
        )
        stability = reading.at(self._groups())
        self.seen.measured += 1
        if stability > self.limit:
            self.seen.above += 1
            self._crossed(record.step, stability)

    def _crossed(self, step: int, stability: float) -> None:
        if self.seen.past is not None:
            return
        self.seen.past = step
        said = (
            f"step {step} is past the edge of stability: {stability:.3g} of the curvature that it "
            f"can bear (above={self.limit:g}), and the loss may grow from here"
        )
        if self.do == "warn":
            warn("guard", f"{said}; lower the learning rate or clip the gradient", self.monitor)
        else:
            tell(self.monitor, "guard", said)

    def _groups(self) -> list[ParameterGroup]:
        """The groups at the rates of their user."""
        groups, own = list(parameter_groups(self.monitor.optimizers, {})), self._own
        if not own:
            return groups
        return [replace(g, lr=float(lr)) for g, (_, lr) in zip(groups, own, strict=True)]

    # -- what is done ---------------------------------------------------------------------------

    @eager
    def _step_starts(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if nested(optimizer):
            return
        self._restore()
        if self._closed or not self.monitor.attached:
            return
        shares = self._shares()
        if min(shares) == 1.0:
            return
        if self.reading is not None:
            self.seen.capped += 1
            self.seen.least = min(self.seen.least, *shares)
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            self._own.append((group, group["lr"]))
            group["lr"] = group["lr"] * share

    @eager
    def _step_ends(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not nested(optimizer):
            self._restore()

    def _restore(self) -> None:
        """Every rate is again the object that it was."""
        own, self._own = self._own, []
        for group, lr in own:
            group["lr"] = lr

    def _shares(self) -> tuple[float, ...]:
        """Of its rate, what each group may take at the coming step."""
        reading, groups = self.reading, self._groups()
        if reading is None:
            if self.seen.waited >= PATIENCE:
                self._once(
                    "nothing",
                    f"no curvature was measured in {PATIENCE} steps: steps are taken as they are "
                    f"until one is ({self._blind or 'no probe was due'})",
                )
                return (1.0,) * len(groups)
            self.seen.waited += 1
            return (LEAST,) * len(groups)
        age = self.monitor.step - reading.step
        if age > 1:
            self._once(
                "age",
                f"step {self.monitor.step} is capped by a measurement of {age} steps before it; "
                "measure every step (every(1), budget=None) to cap by the last one",
            )
        return tuple(max(share, LEAST) for share in reading.shares(groups, self.limit))

    def _once(self, what: str, said: str) -> None:
        if what not in self._told:
            self._told.add(what)
            warn("guard", said, self.monitor)


@checked
def guard(monitor: Monitor, above: Positive = 1.0, do: Literal["warn", "cap"] = "warn") -> Guard:
    """Say which step is past the edge of stability, or cap its learning rate there.

        stability = max over groups of lr lambda_max / c       from "tracking/sharpness", of SGD
                  = lambda_max(S^1/2 H S^1/2)                  from "curvature/stability", of any

    c and S are those of the optimizer (`eqtoolbox.probes.stability`): c = 2 for plain SGD. Above 1
    a step grows along the sharpest direction. A step is measured when it is over, so that the
    number belongs to the parameters that it started from.

    warn: one warning and one event name the first measured step past `above`; training stays
    bit-identical. At the edge of stability full-batch training goes on for long at 1.0 to 1.1,
    where nothing is wrong: above=1.2 is silent there.

    cap: each step of SGD is taken at rates of at most above c / lambda_max, of other optimizers at
    lr min(1, above / stability), by the measurement of the step before and the largest value that
    its error allows; afterwards the rate is again the user's, in the
    optimizer, its `state_dict` and for schedulers. Decay that goes with the rate is capped along.
    Until a first measurement, three steps at most, steps are a millionth of their size. Measure
    every step: `attach(..., probes=[Tracking()], schedule=1, budget=None)`.

    Where it does not help: a rate that is right, with the gradient clipped, ends lower (.02 in
    full batch and .05 to .14 in batches of 64, where the cap ends at .12 to .27) at a twentieth
    of the time or less. By a measurement 5 steps old or older the cap fails: the curvature follows
    the rate at once (`benchmarks/guard.py`).

    Args:
        monitor: attached, with `Tracking` (plain SGD, with momentum or not) or `Curvature`.
        above: limit of the stability.
        do: "warn" or "cap".

    Returns:
        What tells its `state`, what it did, and takes itself off by `remove()`; it is inert once
        the monitor is closed or detached.

    Raises:
        ValueError: no probe of the curvature, a detached monitor; to cap, several optimizers or
            processes.

    Reference: Cohen et al. 2021, Gradient descent on neural networks typically occurs at the edge
        of stability, arXiv 2103.00065.

    Example:
        >>> import torch
        >>> import eqtoolbox as eq
        >>> from eqtoolbox.probes import Tracking
        >>> model = torch.nn.Linear(2, 1)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> monitor = eq.attach(model, sgd, probes=[Tracking()], budget=None)
        >>> guard(monitor, do="cap").state
        'waiting for a first measurement'
        >>> monitor.close()
    """
    return Guard(monitor, above, do)
