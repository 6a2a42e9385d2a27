"""Trackio."""

from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from eqtoolbox.sinks.scalars import PREFIX, Scalars

LEVELS = {"warning": "WARN", "alarm": "ERROR"}  # of alerts


class TrackioSink(Scalars):
    """Logs to the current run of trackio; findings are alerts and a text, the page is a panel.

    Args:
        trackio: the module.
        how: `select` and `histograms`, see `Scalars`.
    """

    hears: ClassVar[bool] = True
    shows: ClassVar[bool] = True

    def __init__(self, trackio: Any, **how: Any) -> None:
        super().__init__(**how)
        self._trackio = trackio

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._trackio.log(numbers, step=step)

    def draw(self, name: str, counts: NDArray[Any], edges: NDArray[Any], step: int) -> None:
        drawn = self._trackio.Histogram(np_histogram=(counts.tolist(), edges.tolist()))
        self._trackio.log({name: drawn}, step=step)

    def found(self, step: int, level: str, title: str, text: str) -> None:
        urgency = self._trackio.AlertLevel[LEVELS[level]]
        self._trackio.alert(f"eqtoolbox: {title}", f"{text} (step {step})", level=urgency)

    def conclude(self, level: str, text: str, page: Path | None) -> None:
        shown = {PREFIX + "findings": self._trackio.Markdown(text)}
        if page is not None:
            shown[PREFIX + "report"] = self._trackio.Html(page.read_text(encoding="utf-8"))
        self._trackio.log(shown, step=self._step)
