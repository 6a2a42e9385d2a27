"""Signs: what is known of a run as a whole, above all whether it learned."""

import math
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.record.facts import NO_FACTS, Facts
from eqtoolbox.report.finding import Evidence
from eqtoolbox.report.log import Log
from eqtoolbox.report.table import LARGEST
from eqtoolbox.report.trace import Curve, trace, traces

State = Literal["learned", "little", "stuck", "grew", "not finite", "unknown"]
LEAST = 8  # losses from which it can be said whether they fell
LEARNED = 0.85  # of the loss at the start, or of the best constant output, whichever is less
STUCK = 0.95  # the same above which nothing was learned
GREW = 1.5
BEYOND = 1e3  # times its size in the first fifth, to which a loss may fall below zero
WEAK = 0.03  # below the best constant on the same batches: less may be how that was estimated
UNSEEN = 1 / 3  # share of labels whose class came once: of so many classes others are missed
CONSTANT = 1e-4  # spread of the outputs over a batch, relative to their size


class Signs:
    """The records of a run as a diagnosis asks for them.

    Example:
        >>> import pathlib, tempfile
        >>> home = pathlib.Path(tempfile.mkdtemp())
        >>> row = '{"step": %d, "name": "training/loss", "value": %g}'
        >>> losses = [2.0, 1.9, 1.5, 1.1, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1]
        >>> rows = [row % pair for pair in enumerate(losses)]
        >>> _ = (home / "records.jsonl").write_text("\\n".join(rows))
        >>> Signs(Log(home)).state
        'learned'
    """

    def __init__(self, run: Log) -> None:
        self.run = run

    def curve(self, name: str) -> Curve | None:
        """The certified measurements of a name; None when there are none."""
        return trace(self.run, name)

    def curves(self, quantity: str) -> dict[str, Curve]:
        """The same by target."""
        return traces(self.run, quantity)

    def now(self, name: str) -> float | None:
        """Median of the last measurements of a name."""
        curve = self.curve(name)
        return None if curve is None else curve.now

    def facts(self, name: str) -> Facts:
        """What the newest row of a name says; nothing where there is none."""
        return self.run.rows(name)[-1].facts if name in self.run else NO_FACTS

    def told(self, name: str, fact: str) -> NDArray[np.float64]:
        """A number that every row of a name says beside its value; NaN where one does not."""
        rows = self.run.rows(name) if name in self.run else ()
        found = [row.facts.number(fact) for row in rows]
        return np.array([math.nan if x is None else x for x in found], np.float64)

    def evidence(self, *names: str) -> tuple[Evidence, ...]:
        """The present level of these, as far as they are known."""
        found = (self.curve(name) for name in names)
        return tuple(curve.evidence() for curve in found if curve is not None)

    @cached_property
    def losses(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps and training losses, NaN and infinities among them: of every step where known."""
        for name in ("vital/losses", "training/loss"):
            if name not in self.run:
                continue
            rows = self.run.rows(name)
            tried = rows.where(rows.having("ok") | rows.having("non_finite"))
            if name == "training/loss":
                return tried.steps, _bounded(tried.numbers("value"))
            steps, values = zip(*[_spread(row.step, row.facts) for row in tried], strict=True)
            return np.concatenate(steps), _bounded(np.concatenate(values))
        return np.zeros(0, np.int64), np.zeros(0)

    @cached_property
    def level(self) -> tuple[float, float]:
        """The loss at the start and at the end: medians of the first and of the last losses."""
        values = self.losses[1][np.isfinite(self.losses[1])]
        if not values.size:
            return math.nan, math.nan
        few = max(1, min(5, len(values) // LEAST))
        return float(np.median(values[:few])), float(np.median(values[-max(1, len(values) // 5) :]))

    @property
    def finite(self) -> bool:
        """Whether the last losses and the parameters are."""
        return self.lost_at is None

    @cached_property
    def lost_at(self) -> int | None:
        """The step from which on losses or parameters are not finite; None where they are."""
        steps, values = self.losses
        bad = ~np.isfinite(values)
        if bad.size and bad[-1]:
            good = np.flatnonzero(~bad)
            return int(steps[good[-1] + 1 if good.size else 0])
        return None

    @cached_property
    def constant_loss(self) -> float | None:
        """The loss of the best constant output, where the kind of the loss is known.

        Targets that the model makes itself may shrink with it, and are no measure; nor are labels
        of too many classes that came once, of all measured batches.
        """
        known, once = self.curve("vital/constant_loss"), self.told("vital/constant_loss", "once")
        if known is None or known.now < known.start / 10:
            return None
        return None if once[-1] > UNSEEN else known.now

    @cached_property
    def best_idle(self) -> float:
        """What a run that learns nothing of its inputs can reach: see `LEARNED`."""
        return min(self.level[0], self.constant_loss or math.inf)

    @cached_property
    def below_guess(self) -> tuple[float, float] | None:
        """By what share the later losses lie below the best constant on their very batches.

        The median and three standard errors of it, where it is more than these and than nothing:
        batches that differ a lot hide a weak signal from the losses alone.
        """
        known = self.curve("vital/constant_loss")
        if known is None or self.constant_loss is None or "vital/own_batch" not in self.run:
            return None
        losses = self.told("vital/own_batch", "loss")
        steps = self.run.rows("vital/own_batch").steps
        _, here, there = np.intersect1d(steps, known.steps, return_indices=True)
        with np.errstate(all="ignore"):
            shares = 1 - losses[here] / known.values[there]
        shares = shares[len(shares) // 2 :]
        shares = shares[np.isfinite(shares)]
        if len(shares) < LEAST:
            return None
        below, error = float(np.median(shares)), scatter(shares)
        return (below, error) if below > max(error, WEAK) else None

    @cached_property
    def state(self) -> State:
        """Whether the run learned: its loss at the end, by the scatter of the batches."""
        values = self.losses[1]
        if not self.finite:
            return "not finite"
        if self.climbs:
            return "stuck"
        if self.option("maximize") or self.unbounded:  # how far it may go is not known
            return "unknown"
        values = values[np.isfinite(values)]
        if len(values) < LEAST:
            return "unknown"
        end, idle = self.level[1], self.best_idle
        size = abs(idle) or 1.0
        first, last = values[: max(1, len(values) // 5)], values[-max(1, len(values) // 5) :]
        few = max(1, min(5, len(values) // LEAST))
        noise = scatter(last) * math.sqrt(1 + len(last) / few)  # of the start, too
        # many are far above the start, and above the largest of the batches that came first
        wild = np.quantile(last, 0.9) - max(idle, np.quantile(first, 0.9)) > GREW * size
        if end - self.level[0] > max((GREW - 1) * size, noise) or wild:
            return "grew"
        if self.constant_loss is not None and end < LEARNED * self.constant_loss:
            return "learned"  # before this run, if not in it
        if self.level[0] - end <= noise or idle - end <= (1 - STUCK) * size:
            signed = self.constant_loss is None and values.min() < 0
            stays: State = "unknown" if signed else "stuck"  # a surrogate about 0 has no level
            return stays if self.below_guess is None else "little"
        return "learned" if idle - end > (1 - LEARNED) * size else "little"

    @cached_property
    def climbs(self) -> bool:
        """Whether the steps raise a loss of a known kind, which all of them are to lower."""
        sign, (start, end) = self.now("vital/loss_sign"), self.level
        wrong = sign is not None and sign * (-1 if self.option("maximize") else 1) < 0
        return wrong and abs(end) * STUCK > abs(start)

    @cached_property
    def unbounded(self) -> bool:
        """Whether the loss fell below zero, far beyond the size of its first fifth.

        One that goes on must have doubled since the last but one fifth; far beyond all scales it
        need not, as rounding stops it there.
        """
        values = self.losses[1][np.isfinite(self.losses[1])]
        if len(values) < LEAST:
            return False
        first, *_, late, last = np.array_split(values, 5)
        size, end = float(np.abs(first).max()), float(np.median(last))
        falls = end < 2 * float(np.median(late)) or end < -(BEYOND**2) * size
        return falls and end < -BEYOND * size

    @property
    def told_by_few(self) -> bool:
        """Whether too few losses are known to say whether it learned."""
        return int(np.isfinite(self.losses[1]).sum()) < LEAST

    @cached_property
    def idle(self) -> bool:
        """Whether it is known that nothing was learned."""
        return self.state in ("stuck", "grew", "not finite")

    @property
    def course(self) -> str:
        """What the loss of a run that learned little or nothing does, as a verb."""
        start, end = self.level
        if self.state == "grew":
            return "grows" if end > start else "swings"
        if self.state == "little":
            return "hardly falls"
        fell = start - end > (1 - LEARNED) * abs(start)
        return "does not fall below that of a guess" if fell else "does not fall"

    @cached_property
    def constant(self) -> bool:
        """Whether the outputs do not depend on the inputs."""
        spread = self.now("vital/output_spread")
        if spread is not None:
            return spread < CONSTANT
        errors = self.curves("equivariance/relative_error").values()
        return any(error.verdict == "trivial" for error in errors)

    @property
    def praised(self) -> bool:
        """Whether anything may be called good: not of a run that learned nothing."""
        return self.state in ("learned", "unknown") and not self.constant

    @property
    def length(self) -> int:
        """Steps of the run."""
        return self.run.last_step + 1

    def option(self, name: str) -> float:
        """Largest value of an option over the optimizer's groups."""
        groups = (self.run.info.get("optimizer") or {}).get("groups") or []
        return max((float(group.get(name) or 0.0) for group in groups), default=0.0)


def scatter(values: NDArray[np.float64]) -> float:
    """Three standard errors of a median, from the median absolute deviation of its values."""
    spread = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    return 3 * 1.2533 * spread / math.sqrt(len(values))


def _spread(step: int, facts: Facts) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The losses that a row stands for, and their steps."""
    kept = facts.get("losses")
    found = kept if isinstance(kept, tuple) else ()
    values = [float(v) if isinstance(v, int | float) else math.nan for v in found]
    first = facts.count("first")
    steps = np.linspace(step if first is None else first, step, len(values)).round()
    return steps.astype(np.int64), np.array(values, np.float64)


def _bounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(values) <= LARGEST, values, np.nan)
