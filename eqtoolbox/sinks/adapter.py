"""The adapter: a sink from whatever a training script logs with already."""

import inspect
from typing import Any

from eqtoolbox.record.chosen import Select
from eqtoolbox.record.sink import Sink
from eqtoolbox.sinks.aim import AimSink
from eqtoolbox.sinks.callable import CallableSink
from eqtoolbox.sinks.mlflow import MlflowSink
from eqtoolbox.sinks.tensorboard import TensorBoardSink
from eqtoolbox.sinks.trackio import TrackioSink
from eqtoolbox.sinks.wandb import WandbSink

ACCEPTED = (
    "an eqtoolbox.Sink, a TensorBoard SummaryWriter, a W&B run, the mlflow or the trackio module, "
    "an aim.Run, a Lightning logger, an object with .log(dict, step=), or a function (dict, step)"
)
_KINDS = (  # by methods that no other tracker has
    (("add_scalar",), TensorBoardSink),
    (("define_metric",), WandbSink),
    (("active_run",), MlflowSink),
    (("alert", "AlertLevel", "Markdown"), TrackioSink),
    (("track", "artifacts_uri"), AimSink),
)


def as_sink(tracker: Any, *, select: Select = "main", histograms: bool = False) -> Sink:
    """The sink that writes to `tracker`, recognised by its methods.

    Args:
        tracker: what numbers can be logged to; a sink is returned as it is.
        select: which numbers it gets: "main" for the dozen that matter, "all", or names, their
            beginnings and patterns, such as ["main", "curvature/*"].
        histograms: whether it draws histograms, too.

    Raises:
        TypeError: it is nothing that numbers can be logged to; the message says what is.

    Example:
        >>> sink = as_sink(lambda numbers, step: None, select=["curvature/*"])
        >>> type(sink).__name__
        'CallableSink'
    """
    if isinstance(tracker, Sink):
        return tracker
    how: dict[str, Any] = {"select": select, "histograms": histograms}
    if not isinstance(tracker, type):
        for methods, kind in _KINDS:
            if all(hasattr(tracker, name) for name in methods):
                return kind(tracker, **how)
        ways = (getattr(tracker, "log_metrics", None), getattr(tracker, "log", None), tracker)
        for log in ways:
            if callable(log) and _takes_numbers(log):
                return CallableSink(log, **how)
    raise TypeError(f"sinks must each be {ACCEPTED}; got {tracker!r}")


def _takes_numbers(log: Any) -> bool:
    try:
        inspect.signature(log).bind({}, step=0)
    except TypeError:
        return False
    except ValueError:  # a function without a signature may take anything
        return True
    return True
