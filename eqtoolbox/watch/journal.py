"""The journal: records and events on their way to the sinks, and what happens when one fails."""

import logging
import math
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Literal

from numpy.typing import NDArray

from eqtoolbox.record.facts import NO_FACTS, Facts
from eqtoolbox.record.record import Record, Status, spelled
from eqtoolbox.record.sink import Sink
from eqtoolbox.watch.interrupts import for_the_loop, shortened, told

logger = logging.getLogger("eqtoolbox")
OnError = Literal["warn", "raise"]

MAX_EVENT = 20_000  # letters of an event, with its traceback
MAX_FAILURES = 3  # in a row, after which a probe is disabled


class Journal:
    """Hands records and events to every sink; nothing that fails here stops training.

    A failing probe is recorded and disabled after three failures in a row; a failing sink is
    disabled at once. One cause is warned of once, however many probes fail by it. With
    `on_error="raise"` errors come through. In a process that was forked from the one it was made
    in it writes nothing: the files are that one's.
    """

    def __init__(
        self, sinks: Sequence[Sink], on_error: OnError, segment: int, quiet: bool = False
    ) -> None:
        self.step = 0
        self.segment = segment
        self.disabled: set[str] = set()
        self.latest: dict[str, Record] = {}  # of each name the newest with a certified number
        self._quiet = quiet  # the first of several processes speaks for all
        self._process = os.getpid()
        self._sinks = list(sinks)
        self.home = next((sink.home for sink in sinks if sink.home), None)
        self.reads = next((sink.reads for sink in sinks if sink.reads), None)
        self._on_error = on_error
        self._failures: dict[str, int] = {}
        self._warned: set[str] = set()

    @property
    def elsewhere(self) -> bool:
        """Whether this is another process, forked from the journal's own."""
        return os.getpid() != self._process

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Write as at an earlier step."""
        now, self.step = self.step, step
        try:
            yield
        finally:
            self.step = now

    def write(self, record: Record) -> Record:
        """Complete a record by step, segment and spelling, mark what is no number, pass it on."""
        row = self._completed(record)
        self._note(row)
        self.each(lambda sink: sink.write(row))
        return row

    def write_all(self, records: Sequence[Record]) -> list[Record]:
        """The same for all records of a probe at one step."""
        rows = [self._completed(record) for record in records]
        for row in rows:
            self._note(row)
        self.each(lambda sink: sink.write_all(rows))
        return rows

    def _note(self, row: Record) -> None:
        if row.status == "ok":
            self.latest[row.name] = row

    def _completed(self, record: Record) -> Record:
        status: Status = record.status
        if status == "ok" and not math.isfinite(record.value):
            status = "non_finite"
        name, note = spelled(record.name), shortened(record.note)
        facts = _completed(record.facts, "" if status == "ok" else note)
        have = (record.step, record.segment, record.status, record.name, record.note, record.facts)
        want = (self.step, self.segment, status, name, note, facts)
        if have == want:
            return record
        told: dict[str, Any] = {"status": status, "name": name, "note": note, "facts": facts}
        return replace(record, step=self.step, segment=self.segment, **told)

    def emit(
        self,
        name: str,
        value: float,
        unit: str = "1",
        note: str = "",
        facts: Mapping[str, Any] = NO_FACTS,
        stderr: float | None = None,
    ) -> Record:
        """Write a number of the monitor's own."""
        row = Record(
            step=self.step,
            name=name,
            value=value,
            stderr=stderr,
            unit=unit,
            note=note,
            facts=Facts(facts),
        )
        return self.write(row)

    def array(self, name: str, values: NDArray[Any]) -> None:
        """Pass on the vector behind a record."""
        self.each(lambda sink: sink.array(self.step, name, values))

    def event(self, kind: str, probe: str, message: str) -> None:
        """Pass on something that happened: kind is info, warning or error."""
        said = shortened(message, MAX_EVENT)
        self.each(lambda sink: sink.event(self.step, kind, probe, said))

    def warn(self, probe: str, message: str) -> None:
        """Tell sinks and user, each thing once."""
        message = shortened(message)
        if message in self._warned:
            return
        self._warned.add(message)
        self.event("warning", probe, message)
        if self._quiet:
            return
        try:
            warnings.warn(f"eqtoolbox: {message}", RuntimeWarning, stacklevel=2)
        except RuntimeWarning:  # warnings are errors here: still no reason to stop training
            if self._on_error == "raise":
                raise
            logger.warning("%s", message)

    def failed(self, name: str, error: BaseException) -> None:
        """Count a failure of `name`.

        Raises:
            BaseException: the error itself, with `on_error="raise"` or where it is an interrupt.
        """
        if self._on_error == "raise" or for_the_loop(error):
            raise error
        self._failures[name] = self._failures.get(name, 0) + 1
        trace = "".join(traceback.format_exception(error)).strip()
        cause = told(error)
        self.event("error", name, f"{cause}\n{trace}")
        if self._failures[name] == 1 and cause not in self._warned:
            self._warned.add(cause)  # whatever else fails alike is only recorded
            self.warn(name, f"{name} failed with {cause}")
        if self._failures[name] == MAX_FAILURES:
            self.disabled.add(name)
            self.event("warning", name, f"{name} is disabled after {MAX_FAILURES} failures")
            if not self._quiet:
                logger.warning("%s is disabled after %d failures", name, MAX_FAILURES)

    def disable(self, name: str, why: str) -> None:
        """Stop a probe for good and say so."""
        self.disabled.add(name)
        self.warn(name, why)

    def retire(self, why: str) -> None:
        """Measure nothing any more, and have each process say so."""
        self._quiet = False
        self.disable("monitor", why)

    def succeeded(self, name: str) -> None:
        """Forget failures of `name`."""
        self._failures.pop(name, None)

    def flush(self) -> None:
        """Tell all sinks that a step is complete."""
        self.each(lambda sink: sink.flush())

    def keep(self, name: str, found: Mapping[str, Any]) -> None:
        """Have plain values kept under a name."""
        self.each(lambda sink: sink.keep(name, found))

    def kept(self, name: str) -> Mapping[str, Any]:
        """What a sink kept under a name, the first that has any."""
        found: list[Mapping[str, Any]] = []
        self.each(lambda sink: found.append(sink.kept(name)))
        return next(filter(None, found), {})

    def add(self, sink: Sink) -> None:
        """Send what comes to this sink too."""
        self._sinks.append(sink)

    def close(self) -> None:
        """Finish all sinks, each of which hears nothing any more from then on."""
        self.each(self._finish)

    def _finish(self, sink: Sink) -> None:
        if sink in self._sinks:
            self._sinks.remove(sink)
            sink.close()

    def each(self, action: Callable[[Sink], Any]) -> None:
        """Have every sink do something; one that fails is disabled, after one warning."""
        if self.elsewhere:
            return
        for sink in tuple(self._sinks):
            try:
                action(sink)
            except BaseException as error:
                if self._on_error == "raise" or for_the_loop(error):
                    raise
                if sink in self._sinks:
                    self._sinks.remove(sink)
                    with suppress(Exception):
                        sink.close()
                kind = type(sink).__name__
                self.warn("monitor", f"{kind} is disabled, it raised {told(error)}")


def _completed(facts: Facts, why: str) -> Facts:
    """The facts of a row, long texts cut, and `why` where the row says why it has no number."""
    if not facts and not why:
        return facts
    said = {k: shortened(v) if isinstance(v, str) else v for k, v in facts.items()}
    if not why and all(said[k] is v for k, v in facts.items()):
        return facts
    return Facts({"why": why} | said if why else said)
