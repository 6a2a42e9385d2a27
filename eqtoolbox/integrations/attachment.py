"""An attachment: the arguments of `attach`, kept until a framework has model and optimizer."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import nn

from eqtoolbox.attach import attach
from eqtoolbox.budget import check_share
from eqtoolbox.checkpoint import check_state
from eqtoolbox.config import Probes, When, resolve
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Location, Seed
from eqtoolbox.journal import OnError
from eqtoolbox.monitor import Monitor
from eqtoolbox.objective import LossFunction
from eqtoolbox.sinks.adapter import as_sink
from eqtoolbox.time_limit import Timeout, check_timeout

F = TypeVar("F", bound=Callable[..., Any])


@checked
@dataclass(kw_only=True, eq=False)
class Attachment:
    """Keyword arguments of `eqtoolbox.attach`, and the monitor that a fit made from them.

    Callbacks inherit it, so that each of them has these fields as its constructor's arguments.
    """

    loss_fn: LossFunction | None = None
    criterion: nn.Module | None = None
    probes: Probes = "standard"
    probe_batch: Any = None
    schedule: When = None
    budget: float | None = 0.05
    probe_timeout: Timeout = "auto"
    run_dir: Location | None = None
    sinks: Sequence[Any] = ()
    seed: Seed = 0
    on_error: OnError = "warn"
    resume: bool = False
    sync: bool = False

    _decorate: ClassVar = "decorate your loss function with @callback.loss"
    monitor: Monitor | None = field(init=False, default=None, repr=False)
    _state: dict[str, Any] | None = field(init=False, default=None, repr=False)
    _function: Callable[..., Any] | None = field(init=False, default=None, repr=False)
    _caught: Callable[..., Any] | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        check_share(self.budget)
        check_timeout(self.probe_timeout)
        given: Any = self.probes
        if isinstance(given, Iterator):
            self.probes = list(given)
        resolve(self.probes, self.schedule)  # for its errors

    def loss(self, function: F) -> F:
        """Decorate `loss_fn(model, batch, ...)` before there is a monitor; as `Monitor.loss`."""

        @functools.wraps(function)
        def caught(*args: Any, **kwargs: Any) -> Any:
            return (self._caught or function)(*args, **kwargs)

        self._function = function
        return caught  # type: ignore[return-value]

    def start(self, model: nn.Module, optimizer: Any, step: int, *trackers: Any) -> Monitor:
        """Attach; a fit that goes on at `step` > 0 appends to its run and loads its state."""
        self.finish()
        self.monitor = attach(
            model,
            optimizer,
            loss_fn=self.loss_fn,
            criterion=self.criterion,
            probes=self.probes,
            probe_batch=self.probe_batch,
            schedule=self.schedule,
            budget=self.budget,
            probe_timeout=self.probe_timeout,
            run_dir=self.run_dir,
            sinks=self.sinks,
            seed=self.seed,
            on_error=self.on_error,
            resume=self.resume or step > 0,
            sync=self.sync,
        )
        self.monitor.loss_is_given(self._decorate, "loss_fn=, a function (model, batch) -> loss")
        if self._function is not None:
            self._caught = self.monitor.loss(self._function)
        for tracker in trackers:
            self.monitor.add_sink(as_sink(tracker))
        if step > 0 and self._state is not None:
            self.monitor.load_state_dict(self._state)
        elif step > 0:
            self.monitor.count_from(step)
        return self.monitor

    def finish(self, error: BaseException | None = None) -> None:
        """Close the monitor and keep its state for a fit that goes on."""
        monitor, self.monitor, self._caught = self.monitor, None, None
        if monitor is not None:
            self._state = monitor.state_dict()
            monitor.__exit__(type(error) if error else None, error, None)

    def state_dict(self) -> dict[str, Any]:
        """The monitor's state, as of now or of its end; empty before the first fit."""
        return (self.monitor.state_dict() if self.monitor else self._state) or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state that the next fit goes on from.

        Raises:
            KeyError, TypeError, ValueError: it is no monitor's state.
        """
        if state_dict:
            check_state(state_dict)
        self._state = state_dict or None
