"""Scalars: the numbers of each step as one dict, for trackers that take `log(numbers, step)`."""

import math
from abc import abstractmethod

from eqtoolbox.record.record import Record
from eqtoolbox.record.sink import Sink

PREFIX = "eqtoolbox/"  # keeps our numbers apart from the user's own in a shared dashboard


class Scalars(Sink):
    """Gathers the finite numbers of a step under `eqtoolbox/<name>` and logs them together.

    Errors, floors and reasons stay in the run directory: trackers draw curves.
    """

    def __init__(self) -> None:
        self._step = 0
        self._numbers: dict[str, float] = {}

    @abstractmethod
    def log(self, numbers: dict[str, float], step: int) -> None:
        """Pass on the numbers of one optimizer step."""

    def write(self, record: Record) -> None:
        if record.step != self._step:
            self.flush()
        self._step = record.step
        if math.isfinite(record.value):
            self._numbers[PREFIX + record.name] = record.value

    def flush(self) -> None:
        numbers, self._numbers = self._numbers, {}
        if numbers:
            self.log(numbers, self._step)

    def close(self) -> None:
        self.flush()
