"""A sink: where records go."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from eqtoolbox.record.record import Record


class Sink(ABC):
    """Takes records one by one; a sink that raises is disabled after one warning."""

    home: Path | None = None  # directory of a run that it keeps
    reads: Callable[[], Any] | None = None  # that run, as it is now
    hears: ClassVar[bool] = False  # True: wants to be told what is found, by `found` and `conclude`
    shows: ClassVar[bool] = False  # True: and the page of the run

    @abstractmethod
    def write(self, record: Record) -> None:
        """Store or show one record at once: a killed run loses nothing already written."""

    def write_all(self, records: Sequence[Record]) -> None:
        """Store or show the records of one probe at one step."""
        for record in records:
            self.write(record)

    def array(  # noqa: B027 - optional
        self, step: int, name: str, values: NDArray[Any]
    ) -> None:
        """Keep the vector that the record `name` of this step summarises: one number a unit."""

    def event(  # noqa: B027 - optional
        self, step: int, kind: str, probe: str, message: str
    ) -> None:
        """Take note of something that happened: kind is info, warning or error."""

    def flush(self) -> None:  # noqa: B027
        """All records of a step are written: pass on what was gathered."""

    def describe(self, **facts: Any) -> None:  # noqa: B027
        """Take note of facts about the run (model, probes, symmetries found)."""

    def keep(self, name: str, found: Mapping[str, Any]) -> None:  # noqa: B027
        """Keep plain values under a name, in place of those that were kept before."""

    def kept(self, name: str) -> Mapping[str, Any]:
        """Values that were kept under a name, whoever wrote them; empty for none."""
        return {}

    def found(self, step: int, level: str, title: str, text: str) -> None:  # noqa: B027
        """Take note of what is wrong, once each: level is warning or alarm."""

    def conclude(  # noqa: B027 - optional
        self, level: str, text: str, page: Path | None
    ) -> None:
        """The run is over: the level of its gravest finding, a Markdown text, the page's file."""

    def close(self) -> None:  # noqa: B027
        """Finish; nothing is written afterwards."""
