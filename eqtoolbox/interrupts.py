"""Interrupts: what is raised inside a replay but meant for the training loop around it."""

from itertools import pairwise
from types import FrameType


def for_the_loop(error: BaseException) -> bool:
    """Whether it is a `KeyboardInterrupt`, or a signal handler raised it.

    Python calls the user's handlers between two instructions of whatever runs, so that a
    `sys.exit` on SIGTERM comes out of a probe. A handler shows in the traceback: it was given the
    signal's number and the very frame that it interrupted.
    """
    if isinstance(error, KeyboardInterrupt):
        return True
    trace = error.__traceback__
    while trace is not None:
        if _handles_signal(trace.tb_frame):
            return True
        trace = trace.tb_next
    return False


def _handles_signal(frame: FrameType) -> bool:
    code, given = frame.f_code, frame.f_locals
    named = code.co_argcount + code.co_kwonlyargcount
    starred = code.co_varnames[named : named + bool(code.co_flags & 0x04)]  # CO_VARARGS
    values = [given.get(name) for name in code.co_varnames[: code.co_argcount]]
    values += [value for name in starred for value in given.get(name) or ()]
    return frame.f_back is not None and any(
        isinstance(number, int) and interrupted is frame.f_back
        for number, interrupted in pairwise(values)
    )


def told(error: BaseException) -> str:
    """Its type and message; the type alone where the message cannot be had."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__
