"""The heap: what was freed goes back to the system, where the C library would keep it."""

import ctypes
import sys


def give_back() -> None:
    """Ask glibc to return free pages.

    Gradients come and go in sizes that glibc keeps in its heap, between those that stay.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
