"""A deadline: replays look at the clock between evaluations and products, and stop after it."""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter


class OutOfTime(BaseException):
    """The deadline is over; no `Exception`, so that nobody takes it for a failure of a loss."""


class _Here(threading.local):
    ends: float | None = None
    next: float | None = None  # when `check` looks closer: then, or at once
    first: Callable[[], None] | None = None  # what it does before
    clock: Callable[[], float] = staticmethod(perf_counter)


_here = _Here()


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Scope whose `check` raises after `seconds`, in this thread; None for never.

    Example:
        >>> with deadline(60.0):
        ...     check()
    """
    outer = _here.ends
    _here.ends = _here.next = None if seconds is None else perf_counter() + seconds
    try:
        yield
    finally:
        _here.ends = _here.next = outer


@contextmanager
def uncounted() -> Iterator[None]:
    """Scope whose time no deadline around it counts."""
    ends, started = _here.ends, perf_counter()
    _here.ends = _here.next = None
    try:
        yield
    finally:
        _here.ends = _here.next = None if ends is None else ends + perf_counter() - started


@contextmanager
def clock(reads: Callable[[], float]) -> Iterator[None]:
    """Scope in which `now` reads another clock, as one that several processes share."""
    outer, _here.clock = _here.clock, reads
    try:
        yield
    finally:
        _here.clock = outer


def now() -> float:
    """Seconds on the clock by which what is measured is cut short."""
    return _here.clock()


def check() -> None:
    """Stop here if time is over: between two evaluations, where nothing is half done.

    Raises:
        OutOfTime: the deadline has passed.
    """
    if _here.next is not None and perf_counter() > _here.next:
        _look_closer()


def at_next_check(act: Callable[[], None]) -> None:
    """Have the next `check` of this thread call it, once."""
    _here.first, _here.next = act, -math.inf


def _look_closer() -> None:
    act, _here.first, _here.next = _here.first, None, _here.ends
    if act is not None:
        act()
    if _here.ends is not None and perf_counter() > _here.ends:
        raise OutOfTime("time is over")
