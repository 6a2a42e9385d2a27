"""The heap: what was freed goes back to the system, and nobody looks for what might be freed."""

import ctypes
import gc
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor

LARGE = 2**22  # numbers in a model, from which on what malloc keeps of its copies is worth a trim


def large(tensors: Iterable[Tensor]) -> bool:
    """Whether these take much of the process's heap."""
    return sum(t.numel() for t in tensors if t.device.type == "cpu") >= LARGE


def give_back() -> None:
    """Ask glibc to return free pages.

    Gradients come and go in sizes that glibc keeps in its heap, between those that stay.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def tidy(tensors: Iterable[Tensor]) -> None:
    """Give free pages back where these are a large model's, whose gradients are as large."""
    if large(tensors):
        give_back()


@contextmanager
def uncollected() -> Iterator[None]:
    """Scope without a search for garbage in circles, which an analysis leaves next to none of.

    It makes so many objects that Python looks through all that the process holds, torch and the
    model among them, time and again: a quarter of the time.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
