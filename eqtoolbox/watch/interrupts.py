"""Interrupts: what is raised inside a replay but meant for the training loop around it."""

# `signal` itself makes enums of what it returns, a microsecond each
import _signal  # type: ignore[import-not-found]
import contextlib
import sys
import threading
from itertools import pairwise
from types import FrameType
from typing import Any

from eqtoolbox.expect.deadline import at_next_check

SIGNALS = tuple(int(number) for number in _signal.valid_signals())
LONGEST = 2_000  # letters of what an error says, and of a note or a warning
Handler = Any  # what `signal.getsignal` returns and calls with a number and a frame


class Gate:
    """Scope in which the user's signal handlers do not run where something is being put back.

    A handler may raise, and that between any two instructions: inside a scope's exit it would
    leave the loop's own state behind. There, and while `holding`, the signal waits for the next
    check of a deadline or for the end of the scope; a second one does not wait. Elsewhere handlers
    run at once. Only the main thread is ever given signals.
    """

    def __init__(self) -> None:
        self.holding = False
        self._handlers: dict[int, Handler] = {}
        self._waiting: list[int] = []
        self._outside: FrameType | None = None  # the frame that entered it

    def __enter__(self) -> "Gate":
        self.holding, self._outside = False, sys._getframe(1)
        if threading.current_thread() is threading.main_thread():
            known = {number: _signal.getsignal(number) for number in SIGNALS}
            self._handlers = {n: own for n, own in known.items() if callable(own)}
            for number in self._handlers:
                _signal.signal(number, self._arrives)
        return self

    def __exit__(self, *error: object) -> None:
        self.holding = False
        for number, own in self._handlers.items():
            if _signal.getsignal(number) == self._arrives:  # a handler may have set another one
                _signal.signal(number, own)
        self._outside = None
        self._deliver()

    def _arrives(self, number: int, frame: FrameType | None) -> None:
        if number not in self._waiting and (self.holding or self._puts_back(frame)):
            self._waiting.append(number)
            at_next_check(self._deliver)
        else:
            self._handlers[number](number, frame)

    def _deliver(self) -> None:
        waiting, self._waiting = self._waiting, []
        for number in waiting:
            self._handlers[number](number, sys._getframe())

    def _puts_back(self, frame: FrameType | None) -> bool:
        """Whether a scope is being entered or left there."""
        while frame is not None and frame is not self._outside:
            code = frame.f_code
            if code.co_name in ("__enter__", "__exit__") or code.co_filename == contextlib.__file__:
                return True
            frame = frame.f_back
        return False


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
        issubclass(type(number), int) and interrupted is frame.f_back
        for number, interrupted in pairwise(values)
    )


def told(error: BaseException) -> str:
    """Its type and message; the type alone where the message cannot be had."""
    try:
        return shortened(f"{type(error).__name__}: {error}")
    except Exception:
        return type(error).__name__


def shortened(text: str, longest: int = LONGEST) -> str:
    """A text without its middle where it is long.

    Example:
        >>> shortened("a" * 10 + "b" * 10, 8)
        'aaaa ... [12 letters left out] ... bbbb'
    """
    if len(text) <= longest:
        return text
    half, more = longest // 2, len(text) - 2 * (longest // 2)
    return f"{text[:half]} ... [{more:,} letters left out] ... {text[-half:]}"
