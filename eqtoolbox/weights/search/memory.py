"""Memory: what was freed goes back to the system, where the C library would keep it."""

import ctypes
import sys

_LARGE = 2**20  # entries


def give_back(entries: int = _LARGE) -> None:
    """Ask glibc to return free pages, after work on a tensor of so many entries; else nothing.

    Copies of weights come and go in sizes that glibc keeps in its heap, between those that stay.
    """
    if entries < _LARGE or sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
