"""One live line per measured step, in the terminal."""

import math
from typing import Any

from eqtoolbox.record.record import Record
from eqtoolbox.record.sink import Sink

SHOWN = {
    "training/loss": "loss",
    "equivariance/relative_error/cyclic4": "turn error",
    "equivariance/relative_error/translation": "shift error",
    "conservation/drift/rescale": "rescale drift",
    "curvature/sharpness": "sharpness",
    "noether/second_order/rescale": "law residual",
}
_EVERY_STEP = {"loss", "rescale drift"}  # charges may be measured at every step: not worth a line
_ERROR = "equivariance/relative_error/"


class LiveLine(Sink):
    """Prints the main numbers of each measured step through tqdm, above its progress bar."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar
        self._step = -1
        self._shown: dict[str, str] = {}

    def write(self, record: Record) -> None:
        if record.step != self._step:
            self._flush()
            self._step = record.step
        label = SHOWN.get(record.name)
        if label is None and record.name.startswith(_ERROR):
            label = f"{record.name.removeprefix(_ERROR)} error"
        if record.name == "curvature/stability":
            label = _edge(record)
        if label and math.isfinite(record.value):
            mark = "" if record.status == "ok" else "?"
            self._shown[label] = f"{record.value:.3g}{mark}"

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        from tqdm import tqdm

        if self._shown.keys() - _EVERY_STEP:
            numbers = "  ".join(f"{label} {value}" for label, value in self._shown.items())
            tqdm.write(f"step {self._step:5d}  {numbers}")
        self._shown = {}


def _edge(record: Record) -> str:
    """What a stability is of: the sharpness times the optimizer's own factor, or its metric."""
    factor = record.facts.number("factor")
    if factor is not None:
        return f"sharpness*{factor:.3g}"
    optimizer = record.facts.text("metric")
    return f"{optimizer} stability" if optimizer else "stability"
