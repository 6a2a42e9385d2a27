"""Hugging Face Accelerate: a monitor that logs to an Accelerator's trackers and is checkpointed."""

from typing import Any

from eqtoolbox.integrations.extra import extra
from eqtoolbox.integrations.trackers import Trackers, known
from eqtoolbox.record.chosen import Select
from eqtoolbox.sinks.callable import CallableSink
from eqtoolbox.sinks.scalars import Scalars
from eqtoolbox.watch.monitor import Monitor

with extra("accelerate", "eqtoolbox.integrations.accelerate"):
    from accelerate import Accelerator
    from accelerate.utils import get_mixed_precision_context_manager


def attach(
    accelerator: Accelerator,
    monitor: Monitor,
    *,
    select: Select = "main",
    histograms: bool = False,
) -> Monitor:
    """Make a monitor at home in an Accelerator, after `prepare`.

    Its numbers go to the trackers that `init_trackers` started, `save_state` and `load_state` keep
    its state, and it knows the mixed precision that `prepare` put around the model.

    Args:
        accelerator: the one that prepared the model and the optimizer.
        monitor: of these: `eqtoolbox.attach(model, optimizer, ...)`. To go on after `load_state`,
            attach it with `resume=True`.
        select: numbers that the trackers get, as in `eqtoolbox.sinks.as_sink`.
        histograms: whether they draw histograms.

    Returns:
        The monitor.

    Example:
        >>> import torch, eqtoolbox as eq
        >>> accelerator = Accelerator(cpu=True)
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> model, optimizer = accelerator.prepare(model, optimizer)
        >>> monitor = attach(accelerator, eq.attach(model, optimizer, criterion=torch.nn.MSELoss()))
        >>> monitor.close()
    """
    monitor.add_sink(_Trackers(accelerator, select=select, histograms=histograms))
    accelerator.register_for_checkpointing(monitor)
    if accelerator.native_amp:
        inside = get_mixed_precision_context_manager(True, accelerator.autocast_handler)
        monitor.autocast_inside(inside.device, inside.fast_dtype)
    return monitor


class _Trackers(Trackers):
    """Whatever trackers the Accelerator has when there is something to log."""

    def __init__(self, accelerator: Accelerator, **how: Any) -> None:
        super().__init__(**how)
        self._accelerator = accelerator
        self._sinks: dict[int, Scalars] = {}

    def log(self, numbers: dict[str, float], step: int) -> None:
        for sink in self.each():
            sink.log(numbers, step)

    def each(self) -> list[Scalars]:
        for tracker in self._accelerator.trackers:
            if id(tracker) not in self._sinks:
                sink = known(tracker.tracker, self._select) or CallableSink(tracker.log)
                self._sinks[id(tracker)] = sink
        return [self._sinks[id(tracker)] for tracker in self._accelerator.trackers]
