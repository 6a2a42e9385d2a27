"""Weights & Biases."""

from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from eqtoolbox.sinks.scalars import PREFIX, Scalars

STEP = PREFIX + "step"
LEVELS = {"warning": "WARN", "alarm": "ERROR"}  # of alerts


class WandbSink(Scalars):
    """Logs to a W&B run on an axis of its own; findings are alerts, and the page is a panel.

    The run's own step must never go back, so that a `step=` beside the user's own logging would
    drop rows; the optimizer step is logged as the metric that ours are drawn over.

    Args:
        run: of `wandb.init`.
        how: `select` and `histograms`, see `Scalars`.
    """

    hears: ClassVar[bool] = True
    shows: ClassVar[bool] = True

    def __init__(self, run: Any, **how: Any) -> None:
        super().__init__(**how)
        self._run = run
        self._has_axis = False
        self._drawn: dict[str, Any] = {}  # histograms of the step, which is one row

    def log(self, numbers: dict[str, float], step: int) -> None:
        if not self._has_axis:
            self._run.define_metric(STEP)
            self._run.define_metric(PREFIX + "*", step_metric=STEP)
            self._has_axis = True
        drawn, self._drawn = self._drawn, {}
        self._run.log({**numbers, **drawn, STEP: step})

    def draw(self, name: str, counts: NDArray[Any], edges: NDArray[Any], step: int) -> None:
        import wandb

        self._drawn[name] = wandb.Histogram(np_histogram=(counts.tolist(), edges.tolist()))

    def found(self, step: int, level: str, title: str, text: str) -> None:
        self._run.alert(f"eqtoolbox: {title}", f"{text} (step {step})", level=LEVELS[level])

    def conclude(self, level: str, text: str, page: Path | None) -> None:
        import wandb

        self._run.summary[PREFIX + "verdict"] = level
        self._run.summary[PREFIX + "findings"] = text
        if page is not None:
            html = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
            self._run.log({PREFIX + "report": html})
