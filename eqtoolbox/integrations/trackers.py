"""Trackers of a framework: several as one sink, which passes texts and histograms on to each."""

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from eqtoolbox.record.chosen import Select
from eqtoolbox.sinks.adapter import as_sink
from eqtoolbox.sinks.scalars import Scalars


class Trackers(Scalars):
    """The trackers that a framework has, whenever there is something to tell them."""

    hears: ClassVar[bool] = True
    shows: ClassVar[bool] = True

    @abstractmethod
    def each(self) -> Iterable[Scalars]:
        """Sinks of those that take more than numbers."""

    def draw(self, name: str, counts: NDArray[Any], edges: NDArray[Any], step: int) -> None:
        for sink in self.each():
            sink.draw(name, counts, edges, step)

    def found(self, step: int, level: str, title: str, text: str) -> None:
        for sink in self.each():
            sink.found(step, level, title, text)

    def conclude(self, level: str, text: str, page: Path | None) -> None:
        for sink in self.each():
            sink.conclude(level, text, page)


def known(inner: Any, select: Select) -> Scalars | None:
    """The sink of what is inside a framework's tracker, where it takes more than numbers."""
    if hasattr(inner, "add_scalar") or hasattr(inner, "define_metric"):
        return as_sink(inner, select=select)  # type: ignore[return-value]
    return None
