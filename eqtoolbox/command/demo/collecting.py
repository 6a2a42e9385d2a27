"""Collecting garbage seldom, where a program of our own imports and makes what stays."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

APART = 50_000  # objects made between two collections


@contextmanager
def seldom() -> Iterator[None]:
    """Scope in which the collector does not walk through all of torch again and again.

    Importing it and its compiler makes a third of a million objects that stay, and the collector
    looks at them ten times for nothing: half a second of a demo.

    Example:
        >>> with seldom():
        ...     gc.get_threshold()[0]
        50000
    """
    known = gc.get_threshold()
    if known[0]:  # 0: it is off
        gc.set_threshold(max(known[0], APART), *known[1:])
    try:
        yield
    finally:
        gc.set_threshold(*known)
