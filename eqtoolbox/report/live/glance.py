"""A glance: the few lines of a run that are worth looking at while it trains."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.live.growing import Growing
from eqtoolbox.report.live.pulse import Pulse, Speed, pulse
from eqtoolbox.report.topics.charges import drifts
from eqtoolbox.report.topics.stability import BEYOND, EDGE
from eqtoolbox.report.trace import LAWS, Curve, trace, traces
from eqtoolbox.report.words import number, percent, symmetry, words

TOP = 3  # findings shown
NEWEST = 3  # events shown
_SPARED = 10  # findings are made anew after as many times what they took


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A line of the table: what, how much, against what, and what that says."""

    what: str
    value: str
    against: str = ""
    verdict: str = ""  # holds, violated, unresolved, trivial; below, at or beyond the edge
    step: int  # of the newest measurement


@dataclass(frozen=True, kw_only=True)
class Glance:
    """What is shown of a run at one moment."""

    name: str
    model: str
    step: int  # of the newest record
    losses: NDArray[np.float64]  # (n,), NaN where a loss was not finite
    findings: tuple[Finding, ...]  # the gravest first
    left_out: int  # findings beside them, without the good ones
    quantities: tuple[Quantity, ...]
    events: tuple[str, ...]  # the newest last
    speed: float | None = None  # steps per second
    age: float = 0.0  # seconds since the last write
    pulse: Pulse = "running"


class Watching:
    """Looks at a run again and again; findings, which read all of it, are made at leisure.

    Args:
        run: that grows.
    """

    def __init__(self, run: Growing) -> None:
        self.run = run
        self._speed = Speed()
        self._findings: list[Finding] = []
        self._seen: Glance | None = None
        self._due = 0.0  # when findings may be made again, of the monotonic clock
        self._known = -1.0  # what was written when they were made

    def look(self, *, last: bool = False) -> Glance:
        """The run as it is now.

        Args:
            last: nothing comes after it, so that findings have to be those of now.
        """
        run = self.run
        grown = run.more()
        now = time.monotonic()
        if run.written != self._known and (last or now >= self._due):
            self._findings, self._known, grown = run.findings(), run.written, True
            self._due = time.monotonic() + _SPARED * (time.monotonic() - now)
        if grown or self._seen is None:
            self._seen = self._new()
        age, finished = max(0.0, time.time() - run.written), bool(run.info.get("finished"))
        state = pulse(finished, age, _beat(run))
        return replace(self._seen, age=age, pulse=state, speed=self._pace(finished))

    def _new(self) -> Glance:
        run = self.run
        told = [f for f in self._findings if f.level != "good"] or self._findings
        return Glance(
            name=run.path.resolve().name,
            model=str((run.info.get("model") or {}).get("class") or "run"),
            step=run.last_step,
            losses=Signs(run).losses[1],
            findings=tuple(told[:TOP]),
            left_out=len(told) - len(told[:TOP]),
            quantities=tuple(quantities(run)),
            events=tuple(_event(event) for event in run.events[-NEWEST:]),
        )

    def _pace(self, finished: bool) -> float | None:
        """Steps per second as seen, or over the whole run where nothing was seen to move."""
        seen, run = self._speed.seen(self.run.last_step), self.run
        took = (run.info.get("finished") or run.written) - (run.info.get("started") or run.written)
        whole = run.last_step / took if took > 0 and (run.info.get("segments") or 1) == 1 else None
        return whole if finished or seen is None else seen


def quantities(run: Growing) -> Iterator[Quantity]:
    """Sharpness against the threshold, the worst error and drift, and the laws."""
    yield from _curvature(run)
    yield from _worst(traces(run, "equivariance/relative_error"), "error", symmetry)
    yield from _worst(drifts(run), "drift", words)
    laws = {n: t for n in run.names() if n.startswith(LAWS[1:]) if (t := trace(run, n)) is not None}
    if laws:
        broken = [n for n, t in laws.items() if t.verdict == "violated"]
        held = sum(t.verdict in ("holds", "trivial") for t in laws.values())
        yield Quantity(
            what="laws",
            value=f"{held} of {len(laws)} hold",
            against=f"{words(broken[0].split('/', 1)[1])} is not" if broken else "",
            verdict="violated" if broken else "holds" if held == len(laws) else "unresolved",
            step=max(t.last.step for t in laws.values()),
        )


def _curvature(run: Growing) -> Iterator[Quantity]:
    """The sharpness as a share of what the optimizer tolerates: 2/lr of plain SGD."""
    sharp, level = trace(run, "curvature/sharpness"), trace(run, "curvature/stability")
    if sharp is None:
        return
    against = verdict = ""
    if level is not None and level.last.value > 0 and level.last.step == sharp.last.step:
        edge, rate = sharp.last.value / level.last.value, trace(run, "training/learning_rate")
        plain = rate is not None and math.isclose(edge * rate.last.value, 2.0, rel_tol=1e-3)
        against = f"{percent(level.now)} of {'2/lr' if plain else 'threshold'} = {number(edge)}"
        verdict = (
            "beyond the edge" if level.now >= BEYOND else "at the edge" if level.now >= EDGE else ""
        )
    yield Quantity(
        what="sharpness",
        value=number(sharp.now),
        against=against,
        verdict=verdict or "below the edge" if against else "",
        step=sharp.last.step,
    )


def _worst(found: dict[str, Curve], what: str, said: Callable[[str], str]) -> Iterator[Quantity]:
    """The largest of several targets, with its floor."""
    if found:
        name = max(found, key=lambda target: abs(found[target].now))
        worst = found[name]
        told = [] if worst.floor is None else [f"floor {number(worst.floor, 2)}"]
        told += [f"worst of {len(found)}"] if len(found) > 1 else []
        yield Quantity(
            what=f"{what}, {said(name)}",
            value=number(worst.now),
            against=", ".join(told),
            verdict=worst.verdict or "",
            step=worst.last.step,
        )


def _beat(run: Growing) -> float:
    """Usual seconds between two writes; 0 where it is not known."""
    measured = len(run.rows("training/loss")) if "training/loss" in run else 0
    took = run.written - (run.info.get("started") or run.written)
    return max(0.0, took) / measured if measured > 1 else 0.0


def _event(event: dict[str, Any]) -> str:
    """An event in a line."""
    probe = event.get("probe", "")
    return f"step {event.get('step', '?')}  {event.get('kind')}  {probe}: {event.get('message')}"
