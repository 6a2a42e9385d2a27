"""Aim."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.record.bins import BINS, DECADES
from eqtoolbox.sinks.scalars import PREFIX, Scalars

LEVELS = {"warning": "log_warning", "alarm": "log_error"}


class AimSink(Scalars):
    """Tracks with an `aim.Run`, the caller's to close; findings are log records and a `Text`.

    The bins of Aim are of one width: histograms are drawn over the logarithmic axis of
    `eqtoolbox.record.bins`: the largest magnitudes at both ends, DECADES smaller ones in the
    middle. The page becomes an artifact where the run has an `artifacts_uri`.

    Args:
        run: an `aim.Run`.
        how: `select` and `histograms`, see `Scalars`.
    """

    hears: ClassVar[bool] = True
    shows: ClassVar[bool] = True

    def __init__(self, run: Any, **how: Any) -> None:
        super().__init__(**how)
        self._run = run

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._run.track(value, name=name, step=step)

    def draw(self, name: str, counts: NDArray[Any], edges: NDArray[Any], step: int) -> None:
        import aim

        width = DECADES / (BINS // 2 - 1)  # of a bin in decades; that around zero is one more
        reach = DECADES + width
        drawn = aim.Distribution(hist=np.asarray(counts), bin_range=(-reach, reach))
        self._run.track(drawn, name=name, step=step)

    def found(self, step: int, level: str, title: str, text: str) -> None:
        getattr(self._run, LEVELS[level])(f"eqtoolbox: {title}: {text}", step=step)

    def conclude(self, level: str, text: str, page: Path | None) -> None:
        import aim

        self._run["eqtoolbox"] = {"verdict": level}
        self._run.track(aim.Text(text), name=PREFIX + "findings", step=self._step)
        if page is not None and self._run.artifacts_uri is not None:
            self._run.log_artifact(str(page), name="eqtoolbox-report.html", block=True)
