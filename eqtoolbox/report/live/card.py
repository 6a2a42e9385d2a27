"""The card of a run: the line that stands for it among others; first what is known at once."""

import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from eqtoolbox.record.files import Folder
from eqtoolbox.record.record import Record
from eqtoolbox.report.directory import Oddities, facts
from eqtoolbox.report.finding import Level
from eqtoolbox.report.following import newest
from eqtoolbox.report.live.pulse import Pulse, ago, patience, pulse
from eqtoolbox.report.live.shelf import Place, certain
from eqtoolbox.report.run import Run
from eqtoolbox.report.words import number

LAST = 1000  # records at the end among which step and loss are looked for
_SPARED = 20  # a run that grows is judged anew after as many times what it took
_LEAST = 5.0  # and after so many seconds


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the findings of a run say, in short."""

    level: Level | None  # of the gravest; None for a run without any
    text: str  # the gravest finding, or why the run cannot be read
    wrong: int  # alarms and warnings
    notes: int
    beat: float = 0.0  # usual seconds between two measured steps


@dataclass(frozen=True, kw_only=True)
class Card:
    """A run among others."""

    key: str
    version: str  # of everything that is shown
    model: str
    step: int  # of the newest record
    loss: str
    started: float  # unix seconds
    written: float
    finished: bool
    judgement: Judgement | None  # None until the run was read

    @property
    def patience(self) -> float:
        """Seconds without a write after which it is silent."""
        return patience(self.judgement.beat if self.judgement else 0.0)

    @property
    def pulse(self) -> Pulse:
        beat = self.judgement.beat if self.judgement else 0.0
        return pulse(self.finished, time.time() - self.written, beat)

    @property
    def age(self) -> str:
        """How long ago it was written."""
        return ago(time.time() - self.written)


class Cards:
    """The cards of the runs of a shelf, kept as long as their files stay the same.

    Runs are read and judged one after the other by a thread of its own, the newest first. Until
    then, and while a run grows faster than it can be judged, a card has the judgement of before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bare: dict[str, Card] = {}
        self._judged: dict[str, tuple[str, float, Judgement]] = {}  # version, when it may be again
        self._waiting: dict[str, Place] = {}
        self._thread: threading.Thread | None = None

    def of(self, places: Iterable[Place]) -> list[Card]:
        """The cards of these runs, in their order."""
        cards = []
        for place in places:
            bare = self._bare.get(place.key)
            if bare is None or bare.version != place.version:
                bare = self._bare[place.key] = _bare(place)
            version, due, judgement = self._judged.get(place.key, ("", 0.0, None))
            if version != place.version and time.monotonic() >= due:
                with self._lock:
                    self._waiting[place.key] = place
            shown = f"{place.version}-{version}"
            cards.append(replace(bare, version=shown, judgement=judgement))
        self._begin()
        return cards

    def wait(self) -> None:
        """Wait until all that was asked for is judged."""
        while (thread := self._thread) is not None and thread.is_alive():
            thread.join()

    def _begin(self) -> None:
        with self._lock:
            if self._waiting and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="judging", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                key = max(self._waiting, key=lambda key: self._waiting[key].written)
                place = self._waiting.pop(key)
            began = time.monotonic()
            judgement = judged(place)
            now = time.monotonic()
            due = now + max(_LEAST, _SPARED * (now - began))
            self._judged[key] = (place.version, due, judgement)


def judged(place: Place) -> Judgement:
    """What the findings of a run are, in short; one that cannot be read is an alarm."""
    try:
        run = Run(certain(place))
        found = run.findings()
        took = place.written - (run.info.get("started") or place.written)
        measured = len(run.rows("training/loss")) if "training/loss" in run else 0
    except Exception as error:  # whatever a file holds, the other runs are shown
        why = getattr(error, "strerror", None) or error
        return Judgement(level="alarm", text=f"The run cannot be read: {why}", wrong=1, notes=0)
    counts = Counter(f.level for f in found)
    return Judgement(
        level=found[0].level if found else None,
        text=found[0].text if found else "",
        wrong=counts["alarm"] + counts["warning"],
        notes=counts["note"],
        beat=max(0.0, took) / measured if measured > 1 else 0.0,
    )


def _bare(place: Place) -> Card:
    """What run.json and the last records say: read in milliseconds, however long the run."""
    info: dict[str, Any] = {}
    records: list[Record] = []
    with suppress(OSError, ValueError):
        folder = Folder(certain(place))
        info = facts(folder, Oddities())
        folder.close()
        records, _ = newest(place.path, LAST)
    losses = [r.value for r in records if r.name in ("training/loss", "vital/losses")]
    return Card(
        key=place.key,
        version=place.version,
        model=str((info.get("model") or {}).get("class") or ""),
        step=max((r.step for r in records), default=0),
        loss=number(losses[-1]) if losses else "",
        started=float(info.get("started") or place.written),
        written=place.written,
        finished=bool(info.get("finished")),
        judgement=None,
    )
