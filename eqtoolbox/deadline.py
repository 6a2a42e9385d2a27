"""A deadline: replays look at the clock between evaluations and products, and stop after it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class OutOfTime(BaseException):
    """The deadline is over; no `Exception`, so that nobody takes it for a failure of a loss."""


class _Here(threading.local):
    ends: float | None = None


_here = _Here()


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Scope whose `check` raises after `seconds`, in this thread; None for never.

    Example:
        >>> with deadline(60.0):
        ...     check()
    """
    outer, _here.ends = _here.ends, None if seconds is None else perf_counter() + seconds
    try:
        yield
    finally:
        _here.ends = outer


def check() -> None:
    """Stop here if time is over: between two evaluations, where nothing is half done.

    Raises:
        OutOfTime: the deadline has passed.
    """
    ends = _here.ends
    if ends is not None and perf_counter() > ends:
        raise OutOfTime("time is over")
