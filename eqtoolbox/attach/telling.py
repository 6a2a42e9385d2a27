"""Telling: what a run shows is read back from its directory and told to its trackers."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqtoolbox.record.record import Record
from eqtoolbox.record.sink import Sink
from eqtoolbox.watch.journal import logger

if TYPE_CHECKING:
    from eqtoolbox.report.finding import Finding
    from eqtoolbox.report.run import Run

FIRST = 16  # measured steps until the first look; the next ones are at twice as many each
TOLD = ("warning", "alarm")  # levels of what is told as soon as it is seen


class Telling(Sink):
    """Tells warnings and alarms while a run goes on, all findings and the page when it is over.

    A look reads the whole run: they come at 16, 32, 64, ... measured steps, so that all of them
    together cost no more than twice the last. Without a tracker that hears there are none.

    Args:
        path: the run directory, whose own sink is told before this one.
        topics: those that the probes bring.
    """

    def __init__(self, path: Path, topics: Iterable[Any]) -> None:
        self._path, self._topics = path, tuple(topics)
        self._steps, self._next, self._told = 0, FIRST, set[tuple[Any, ...]]()
        self.pass_on: Callable[[Callable[[Sink], Any]], None] = lambda act: None  # to all sinks

    def write(self, record: Record) -> None:
        """Records are read back when a look is taken."""

    def flush(self) -> None:
        self._steps += 1
        if self._steps < self._next:
            return
        self._next = 2 * self._steps
        if self._wanted("hears"):
            self._tell(self.reads())

    def close(self) -> None:
        if not self._steps or not self._wanted("hears"):
            return
        from eqtoolbox.report.model_card import level, model_card_section

        run = self.reads()
        self._tell(run)
        gravest, text = level(run), model_card_section(run)
        page = self._page(run) if self._wanted("shows") else None
        self.pass_on(lambda sink: sink.conclude(gravest, text, page))

    def _wanted(self, what: str) -> bool:
        found: list[bool] = []
        self.pass_on(lambda sink: found.append(getattr(sink, what)))
        return any(found)

    def reads(self) -> "Run":
        from eqtoolbox.report.run import Run  # which few trainings need

        return Run(self._path, topics=self._topics)

    def _tell(self, run: "Run") -> None:
        """What was not told before: of one disease, or of what rests on the same records, once."""
        for finding in run.findings():
            key = (finding.level, *_subject(finding))
            if finding.level in TOLD and key not in self._told:
                self._told.add(key)
                self._found(run.last_step, finding)

    def _found(self, step: int, finding: "Finding") -> None:
        tried = f" Try: {'; '.join(finding.remedy)}." if finding.remedy else ""
        named = [e.name for e in finding.evidence[:1]]
        title = finding.id or (named[0] if named else finding.level)
        self.pass_on(lambda sink: sink.found(step, finding.level, title, finding.text + tried))

    def _page(self, run: "Run") -> Path | None:
        from eqtoolbox.report.page import write_page

        try:
            return write_page(run, self._path)
        except (ImportError, OSError) as error:
            logger.warning("trackers get no page of the run: %s", error)
            return None


def _subject(finding: "Finding") -> tuple[Any, ...]:
    """What a finding is about, whatever its numbers: they change from look to look."""
    about = (finding.id, finding.where, *(e.name for e in finding.evidence))
    return about if any(about) else (finding.text,)
