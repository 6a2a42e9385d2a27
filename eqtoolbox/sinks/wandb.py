"""Weights & Biases."""

from typing import Any

from eqtoolbox.sinks.scalars import PREFIX, Scalars

STEP = PREFIX + "step"


class WandbSink(Scalars):
    """Logs to a W&B run on an axis of its own.

    The run's own step must never go back, so that a `step=` beside the user's own logging would
    drop rows; the optimizer step is logged as the metric that ours are drawn over.
    """

    def __init__(self, run: Any) -> None:
        super().__init__()
        self._run = run
        run.define_metric(STEP)
        run.define_metric(PREFIX + "*", step_metric=STEP)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._run.log({**numbers, STEP: step})
