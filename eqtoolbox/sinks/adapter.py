"""The adapter: a sink from whatever a training script logs with already."""

import inspect
from typing import Any

from eqtoolbox.record.sink import Sink
from eqtoolbox.sinks.callable import CallableSink
from eqtoolbox.sinks.mlflow import MlflowSink
from eqtoolbox.sinks.tensorboard import TensorBoardSink
from eqtoolbox.sinks.wandb import WandbSink

ACCEPTED = (
    "an eqtoolbox.Sink, a TensorBoard SummaryWriter, a W&B run, the mlflow module, a Lightning "
    "logger, an object with .log(dict, step=), or a function (dict, step)"
)


def as_sink(tracker: Any) -> Sink:
    """The sink that writes to `tracker`, recognised by its methods.

    Raises:
        TypeError: it is nothing that numbers can be logged to; the message says what is.
    """
    if isinstance(tracker, Sink):
        return tracker
    if not isinstance(tracker, type):
        if hasattr(tracker, "add_scalar"):
            return TensorBoardSink(tracker)
        if hasattr(tracker, "define_metric"):
            return WandbSink(tracker)
        if hasattr(tracker, "active_run"):
            return MlflowSink(tracker)
        ways = (getattr(tracker, "log_metrics", None), getattr(tracker, "log", None), tracker)
        for log in ways:
            if callable(log) and _takes_numbers(log):
                return CallableSink(log)
    raise TypeError(f"sinks must each be {ACCEPTED}; got {tracker!r}")


def _takes_numbers(log: Any) -> bool:
    try:
        inspect.signature(log).bind({}, step=0)
    except TypeError:
        return False
    except ValueError:  # a function without a signature may take anything
        return True
    return True
