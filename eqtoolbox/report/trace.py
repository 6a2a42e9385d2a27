"""A trace: the certified measurements of one name, and what can be said of them robustly."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.record.record import Record, Verdict, verdict
from eqtoolbox.report.finding import Evidence
from eqtoolbox.report.table import LARGEST, Rows
from eqtoolbox.report.words import number

if TYPE_CHECKING:
    from eqtoolbox.report.log import Log

SHORT = 100  # records that are made at once; those of longer traces when they are asked for
RECENT = 5  # measurements that make up "now": odd, so that one outlier is always outvoted
ORDERED = 0.9  # share of pairs from which two sets of measurements lie apart
NO_PROBES = ("training", "monitor", "cost", "vital")  # first words of names that no probe has
LAWS = (  # quantities that are zero when a law holds, so that their floor alone can judge them
    "equivariance/relative_error/",
    "noether/zeroth_order/",
    "noether/first_order/",
    "noether/second_order/",
    "noether/epsilon/",
    "noether/epsilon_second_order/",
    "conservation/first_order/",
    "conservation/epsilon/",
    "noether/bracket",
    "discrete/first_order/",
    "discrete/second_order/",
    "discrete/block/",
    "conservation/closure/",
)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Certified records of one name (status ok, a finite number), by step; never empty.

    Their errors and floors are finite and not negative, or None.
    """

    records: Sequence[Record]
    unanswered: int = 0  # attempts after the last certified one

    @property
    def name(self) -> str:
        return self.records[0].name

    @property
    def last(self) -> Record:
        return self.records[-1]

    @property
    def recent(self) -> Sequence[Record]:
        return self.records[-RECENT:]

    @property
    def steps(self) -> NDArray[np.int64]:
        """Steps of all records, (n,)."""
        rows = self.records
        return rows.steps if isinstance(rows, Rows) else np.array([r.step for r in rows], np.int64)

    def numbers(self, field: str) -> NDArray[np.float64]:
        """value, stderr or floor of all records, (n,); NaN where there is none."""
        if isinstance(self.records, Rows):
            return self.records.numbers(field)
        return np.array([getattr(r, field) for r in self.records], np.float64)

    @property
    def values(self) -> NDArray[np.float64]:
        """Values of all records, (n,)."""
        return self.numbers("value")

    def where(self, kept: NDArray[np.bool_]) -> "Curve | None":
        """Those of the records that are marked, (n,); None where none is."""
        if not kept.any():
            return None
        if isinstance(self.records, Rows):
            return replace(self, records=self.records.where(kept))
        return replace(self, records=tuple(compress(self.records, kept)))

    @property
    def now(self) -> float:
        """Median of the last measurements."""
        return _median(r.value for r in self.recent)

    @property
    def start(self) -> float:
        """Median of the first measurements, as many as leave the last ones out."""
        count = max(1, min(RECENT, len(self.records) - RECENT))
        return _median(r.value for r in self.records[:count])

    @property
    def apart(self) -> bool:
        """Whether first and last measurements lie apart: nine in ten pairs are in one order.

        Of medians alone batches of a few samples make a rise or a fall.
        """
        first = self.values[: max(1, min(RECENT, len(self.records) - RECENT))]
        above = float((self.values[-RECENT:, None] > first).mean())
        return not 1 - ORDERED < above < ORDERED

    @property
    def floor(self) -> float | None:
        """Median floor of the last measurements, None when none was recorded."""
        floors = [r.floor for r in self.recent if r.floor is not None]
        return _median(floors) if floors else None

    @property
    def error(self) -> float:
        """Largest recent error of a value: its stderr or its floor; 0 when none was recorded."""
        return max(max(r.stderr or 0.0, r.floor or 0.0) for r in self.recent)

    @property
    def verdict(self) -> Verdict | None:
        """What most of the last measurements say; unresolved when they disagree."""
        votes = Counter(v for r in self.recent if (v := judged(r)) is not None)
        if not votes:
            return None
        winner, count = votes.most_common(1)[0]
        agreed = 2 * count > len(self.recent)
        below = self.floor is not None and abs(self.now) <= self.floor
        return "unresolved" if not agreed or (below and winner == "violated") else winner

    def evidence(self) -> Evidence:
        """The present level as evidence."""
        points = len(self.recent)
        return Evidence(name=self.name, step=self.last.step, value=self.now, points=points)

    def latest(self) -> Evidence:
        """The newest record as evidence, for quantities that add up instead of scattering."""
        return Evidence(name=self.name, step=self.last.step, value=self.last.value)

    @property
    def once(self) -> bool:
        """Whether there is one measurement only, at a step that `since` names."""
        return len(self.records) == 1

    def since(self, flags: Sequence[bool]) -> str:
        """When a condition began to hold for good, in words; `flags` has one entry a record."""
        begin = onset(flags)
        if begin is None:
            return "not at present"
        if self.once:
            return f"at step {self.last.step}, the only measurement"
        return "since the start" if begin == 0 else f"since step {self.records[begin].step}"


def trace(run: "Log", name: str) -> Curve | None:
    """The certified measurements of a name; None when there are none."""
    if name not in run:
        return None
    rows = run.rows(name)
    rows = rows.where(~rows.having("skipped_budget"))  # never tried
    known = ~(rows.numbers("stderr") > LARGEST)  # an infinite error says that nothing is known
    sized = np.abs(rows.numbers("value")) <= LARGEST
    held = np.flatnonzero(rows.having("ok") & sized & known)
    if not held.size:
        return None
    kept: Sequence[Record] = rows.where(held).sound()
    if len(kept) <= SHORT:
        kept = tuple(kept)
    return Curve(records=kept, unanswered=len(rows) - 1 - int(held[-1]))


def arrays(trace: Curve) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps and values of a trace, both (n,)."""
    return trace.steps, trace.values


def vectors(run: "Log", name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What `run.array` gives, NaN for numbers beyond all sums; empty where nothing was kept."""
    if name not in run.arrays():
        return np.zeros(0, np.int64), np.zeros(0)
    steps, kept = run.array(name)
    with np.errstate(all="ignore"):
        values = kept.astype(np.float64)
        return steps, np.where(np.abs(values) <= LARGEST, values, np.nan)


def skipped(run: "Log") -> dict[str, int]:
    """How many due measurements the budget left out, by probe; not each of them has a row."""
    found = {
        probe: n for (probe, status), n in run.attempts().items() if status == "skipped_budget"
    }
    for probe, count in traces(run, "cost/skipped").items():
        found[probe] = max(found.get(probe, 0), round(count.last.value))
    return found


def traces(run: "Log", quantity: str) -> dict[str, Curve]:
    """Traces of a quantity by target: symmetry, family or rank."""
    found = {target: trace(run, f"{quantity}/{target}") for target in run.targets(quantity)}
    return {target: t for target, t in found.items() if t is not None}


def judged(record: Record) -> Verdict | None:
    """The verdict of a record; a law whose value is below its floor holds, whatever was said.

    Without a verdict the floor of a law decides (see `eqtoolbox.record.record.verdict`).
    """
    floor, size = record.floor, abs(record.value)
    if floor is None or not (record.verdict or record.name.startswith(LAWS)):
        return record.verdict
    if size <= floor and record.verdict not in ("trivial", "unresolved"):
        return "holds"
    return record.verdict or verdict(size, floor)


def floor_words(t: Curve) -> str:
    """The floor of a trace in parentheses, or nothing."""
    return "" if t.floor is None else f" (floor {number(t.floor, 2)})"


def onset(flags: Sequence[bool], window: int = RECENT) -> int | None:
    """Index where a condition began that half of every later window of `window` fulfils.

    Example:
        >>> onset([False, True, False, False, True, True, True, False, True])
        4
        >>> onset([True, False, False, False]) is None
        True
    """
    marked = np.asarray(flags, bool)
    if not marked.size:
        return None
    ends = np.arange(1, len(marked) + 1)
    starts = np.maximum(0, ends - window)
    sums = np.concatenate([[0], np.cumsum(marked)])
    lost = np.flatnonzero(2 * (sums[ends] - sums[starts]) < ends - starts)
    begin = int(lost[-1]) + 1 if lost.size else 0
    if begin == len(marked):
        return None
    while begin > 0 and marked[begin - 1]:
        begin -= 1
    return begin


def drift(values: Sequence[float] | NDArray[np.float64]) -> int:
    """Direction of a series by the Mann-Kendall test: 1 up, -1 down, 0 neither (|z| < 2).

    Reference:
        Mann (1945), Econometrica 13(3).
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[np.linspace(0, len(x) - 1, min(len(x), 200)).astype(int)]  # quadratic cost
    n = len(x)
    if n < 4:
        return 0
    concordance = np.sign(x[None, :] - x[:, None])[np.triu_indices(n, 1)].sum()
    z = concordance / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    return int(np.sign(z)) if abs(z) >= 2 else 0


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))
