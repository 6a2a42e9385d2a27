"""Aloud: what an act has to say, to the run that is watched and to its user."""

import logging
import warnings

from eqtoolbox.watch.monitor import Monitor

logger = logging.getLogger("eqtoolbox")


def tell(monitor: Monitor, act: str, said: str, kind: str = "info") -> None:
    """Write an event `act.<act>` into the run, at the step that is being taken or comes next."""
    monitor.pass_on(lambda sink: sink.event(monitor.step, kind, f"act.{act}", said))


def warn(act: str, said: str, monitor: Monitor | None = None) -> None:
    """Warn the user, where warnings are errors by the log, and the run if there is one."""
    if monitor is not None:
        tell(monitor, act, said, "warning")
    try:
        warnings.warn(f"eqtoolbox: {said}", RuntimeWarning, stacklevel=3)
    except RuntimeWarning:  # no reason to stop training
        logger.warning("%s", said)
