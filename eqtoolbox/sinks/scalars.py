"""Scalars: the numbers of each step as one dict, for trackers that take `log(numbers, step)`."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from eqtoolbox.expect.checked import checked
from eqtoolbox.record.bins import histogram
from eqtoolbox.record.chosen import Select, asked, chosen
from eqtoolbox.record.record import Record
from eqtoolbox.record.sink import Sink

PREFIX = "eqtoolbox/"  # keeps our numbers apart from the user's own in a shared dashboard
MADE_OF = ("histogram", "conservation/charge", "conservation/unit_drift")  # what has histograms


class Scalars(Sink):
    """Gathers the finite numbers of a step under `eqtoolbox/<name>` and logs them together.

    Errors, floors and reasons stay in the run directory: trackers draw curves.

    Args:
        select: "main" for the dozen of `eqtoolbox.record.chosen.MAIN`, "all", or names, their
            beginnings and patterns, with "main" among them if that is wanted, too.
        histograms: whether vectors behind records are drawn, where the tracker has histograms.
    """

    @checked
    def __init__(self, *, select: Select = "main", histograms: bool = False) -> None:
        self._step = 0
        self._select: str | Sequence[str] = select
        self._histograms = histograms
        self._rows: dict[str, Record] = {}

    @abstractmethod
    def log(self, numbers: dict[str, float], step: int) -> None:
        """Pass on the numbers of one optimizer step."""

    def draw(self, name: str, counts: NDArray[Any], edges: NDArray[Any], step: int) -> None:
        """Pass on a histogram: counts (n,) between edges (n + 1,)."""

    def write(self, record: Record) -> None:
        if record.step != self._step:
            self.flush()
        self._step = record.step
        if math.isfinite(record.value):
            self._rows[record.name] = record

    def array(self, step: int, name: str, values: NDArray[Any]) -> None:
        if self._histograms and asked(name, MADE_OF):
            self.draw(PREFIX + name, *histogram(values), step)

    def flush(self) -> None:
        rows, self._rows = self._rows, {}
        numbers = {PREFIX + name: value for name, value in chosen(rows, self._select).items()}
        if numbers:
            self.log(numbers, self._step)

    def close(self) -> None:
        self.flush()
