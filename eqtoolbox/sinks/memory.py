"""Records kept in memory."""

from typing import Any

from numpy.typing import NDArray

from eqtoolbox.record.record import Record
from eqtoolbox.record.sink import Sink


class MemorySink(Sink):
    """Keeps records, events and arrays in the lists `records`, `events` and `arrays`.

    Example:
        >>> sink = MemorySink()
        >>> sink.write(Record(step=0, name="training/loss", value=2.3))
        >>> sink.records[0].value
        2.3
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.events: list[tuple[int, str, str, str]] = []
        self.arrays: list[tuple[int, str, NDArray[Any]]] = []

    def write(self, record: Record) -> None:
        self.records.append(record)

    def array(self, step: int, name: str, values: NDArray[Any]) -> None:
        self.arrays.append((step, name, values))

    def event(self, step: int, kind: str, probe: str, message: str) -> None:
        self.events.append((step, kind, probe, message))
