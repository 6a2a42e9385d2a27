"""TensorBoard."""

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.record.chosen import LAYOUT, has_main
from eqtoolbox.sinks.scalars import PREFIX, Scalars


class TensorBoardSink(Scalars):
    """Writes scalars, findings as texts and histograms to a `SummaryWriter`, the caller's to close.

    The dozen of "main" is laid out in three charts of the tab "custom scalars".

    Args:
        writer: of torch or tensorboardX.
        layout: False where the writer has a layout of custom scalars already: it takes one.
        how: `select` and `histograms`, see `Scalars`.
    """

    hears: ClassVar[bool] = True

    def __init__(self, writer: Any, *, layout: bool = True, **how: Any) -> None:
        super().__init__(**how)
        self._writer = writer
        self._to_lay_out = layout and has_main(self._select)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.lay_out()
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, global_step=step)

    def lay_out(self) -> None:
        """Write the layout of the dozen, once."""
        wanted, self._to_lay_out = self._to_lay_out, False
        if wanted and hasattr(self._writer, "add_custom_scalars"):
            charts = {
                title: ["Multiline", [f"^{re.escape(PREFIX + name)}$" for name in names]]
                for title, names in LAYOUT.items()
            }
            self._writer.add_custom_scalars({PREFIX.rstrip("/"): charts})

    def draw(self, name: str, counts: NDArray[Any], edges: NDArray[Any], step: int) -> None:
        middle = (edges[1:] + edges[:-1]) / 2
        self._writer.add_histogram_raw(
            name,
            min=edges[0],
            max=edges[-1],
            num=counts.sum(),
            sum=float(counts @ middle),
            sum_squares=float(counts @ np.square(middle)),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )

    def found(self, step: int, level: str, title: str, text: str) -> None:
        self._writer.add_text(f"{PREFIX}alerts", f"**{level}** {title}: {text}", step)

    def conclude(self, level: str, text: str, page: Path | None) -> None:
        self._writer.add_text(f"{PREFIX}findings", text, self._step)

    def close(self) -> None:
        super().close()
        self._writer.flush()
