"""An attachment: the arguments of `attach`, kept until a framework has model and optimizer."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import nn

from eqtoolbox.attach.attach import attach
from eqtoolbox.attach.config import resolve
from eqtoolbox.expect.checked import checked
from eqtoolbox.sinks.adapter import as_sink
from eqtoolbox.watch.checkpoint import check_state
from eqtoolbox.watch.monitor import Monitor
from eqtoolbox.watch.options import Options

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(kw_only=True, eq=False)
class Fit:
    """What a fit makes of an attachment, and what it leaves to the next one."""

    monitor: Monitor | None = None
    state: dict[str, Any] | None = None  # of the last monitor
    function: Callable[..., Any] | None = None  # the decorated loss
    caught: Callable[..., Any] | None = None  # the same, as the monitor sees it


@checked
@dataclass(frozen=True, kw_only=True, eq=False)
class Attachment(Options):
    """Keyword arguments of `eqtoolbox.attach`, and the monitor that a fit made from them.

    Callbacks inherit it, so that each of them has these fields as its constructor's arguments. They
    are no dataclasses themselves: frameworks write attributes of their own on them.
    """

    _fit: Fit = field(init=False, default_factory=Fit, repr=False)
    _decorate: ClassVar = "decorate your loss function with @callback.loss"

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.probes
        if isinstance(given, Iterator):
            object.__setattr__(self, "probes", list(given))
        resolve(self.probes, self.schedule)  # for its errors

    @property
    def monitor(self) -> Monitor | None:
        """That of the fit that is going on."""
        return self._fit.monitor

    def loss(self, function: F) -> F:
        """Decorate `loss_fn(model, batch, ...)` before there is a monitor; as `Monitor.loss`."""

        @functools.wraps(function)
        def caught(*args: Any, **kwargs: Any) -> Any:
            return (self._fit.caught or function)(*args, **kwargs)

        self._fit.function = function
        return caught  # type: ignore[return-value]

    def start(
        self,
        model: nn.Module,
        optimizer: Any,
        step: int,
        *trackers: Any,
        steps: float | None = None,
    ) -> Monitor:
        """Attach; a fit that goes on at `step` > 0 appends to its run and loads its state.

        Args:
            steps: where the framework ends, unless the user said so; what is no count is not known.
        """
        self.finish()
        told = int(steps) if steps is not None and 0 < steps < math.inf else None
        given = self.values() | {"resume": self.resume or step > 0, "steps": self.steps or told}
        self._fit.monitor = monitor = attach(model, optimizer, **given)
        monitor.loss_is_given(self._decorate, "loss_fn=, a function (model, batch) -> loss")
        if self._fit.function is not None:
            self._fit.caught = monitor.loss(self._fit.function)
        for tracker in trackers:
            monitor.add_sink(as_sink(tracker, select=self.select, histograms=self.histograms))
        if step > 0 and self._fit.state is not None:
            monitor.load_state_dict(self._fit.state)
        elif step > 0:
            monitor.count_from(step)
        return monitor

    def finish(self, error: BaseException | None = None) -> None:
        """Close the monitor and keep its state for a fit that goes on."""
        fit, monitor = self._fit, self._fit.monitor
        fit.monitor = fit.caught = None
        if monitor is not None:
            fit.state = monitor.state_dict()
            monitor.__exit__(type(error) if error else None, error, None)

    def state_dict(self) -> dict[str, Any]:
        """The monitor's state, as of now or of its end; empty before the first fit."""
        return (self.monitor.state_dict() if self.monitor else self._fit.state) or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state that the next fit goes on from.

        Raises:
            KeyError, TypeError, ValueError: it is no monitor's state.
        """
        if state_dict:
            check_state(state_dict)
        self._fit.state = state_dict or None
