"""Records kept in memory."""

from eqtoolbox.record import Record
from eqtoolbox.sink import Sink


class MemorySink(Sink):
    """Keeps every record in the list `records` and every event in `events`.

    Example:
        >>> sink = MemorySink()
        >>> sink.write(Record(step=0, name="training/loss", value=2.3))
        >>> sink.records[0].value
        2.3
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.events: list[tuple[int, str, str, str]] = []

    def write(self, record: Record) -> None:
        self.records.append(record)

    def event(self, step: int, kind: str, probe: str, message: str) -> None:
        self.events.append((step, kind, probe, message))
