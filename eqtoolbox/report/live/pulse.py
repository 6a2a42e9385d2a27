"""The pulse of a run: whether it is written still, and how fast it goes."""

import time
from collections import deque
from typing import Literal

from eqtoolbox.report.words import number, plural

Pulse = Literal["running", "finished", "silent"]
PATIENCE = 60.0  # seconds without a write after which a run is silent, at least
BEATS = 10  # and as many times the usual time between two writes
_WINDOW = 30.0  # seconds of which a speed is the mean


def pulse(finished: bool, age: float, beat: float = 0.0) -> Pulse:
    """Whether a run is being written, was closed, or fell silent: killed, or in a long pause.

    Args:
        finished: whether the run was closed.
        age: seconds since the last write.
        beat: usual seconds between two writes; 0 for unknown.

    Example:
        >>> pulse(False, 3.0), pulse(True, 3.0), pulse(False, 90.0), pulse(False, 90.0, beat=30.0)
        ('running', 'finished', 'silent', 'running')
    """
    if finished:
        return "finished"
    return "running" if age <= patience(beat) else "silent"


def patience(beat: float = 0.0) -> float:
    """Seconds without a write after which a run that was not closed is silent."""
    return max(PATIENCE, BEATS * beat)


def ago(seconds: float) -> str:
    """A time that has passed, in its largest unit.

    Example:
        >>> [ago(s) for s in (-3, 0.4, 59, 60, 3700, 90_000, 5e6)]
        ['0 s', '0 s', '59 s', '1 min', '1 h', '1 day', '57 days']
    """
    seconds = max(0.0, seconds)  # clocks may be set back
    for size, unit in ((60, "s"), (3600, "min"), (86_400, "h")):
        if seconds < size:
            return f"{int(seconds // {'s': 1, 'min': 60, 'h': 3600}[unit])} {unit}"
    return plural(int(seconds // 86_400), "day")


class Speed:
    """Steps per second over the last half minute of looking.

    Example:
        >>> speed = Speed()
        >>> speed.seen(100, at=0.0), speed.seen(150, at=5.0)
        (None, 10.0)
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def seen(self, step: int, *, at: float | None = None) -> float | None:
        """Tell the newest step; the speed by now, None as long as nothing moved.

        Args:
            step: of the newest record.
            at: seconds of a clock that runs evenly; the present of `time.monotonic` if None.
        """
        now = time.monotonic() if at is None else at
        if self._seen and step < self._seen[-1][1]:
            self._seen.clear()  # another run
        self._seen.append((now, step))
        while len(self._seen) > 2 and now - self._seen[1][0] > _WINDOW:
            self._seen.popleft()
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        return (last - first) / (ended - began) if last > first and ended > began else None


def rate(speed: float | None) -> str:
    """A speed in words; what is slow as seconds a step.

    Example:
        >>> rate(12.34), rate(0.04), rate(None)
        ('12.3 steps/s', '25 s a step', '')
    """
    if speed is None or speed <= 0:
        return ""
    return f"{number(speed)} steps/s" if speed >= 0.5 else f"{number(1 / speed)} s a step"
