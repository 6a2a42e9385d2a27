"""Neighbours: what other threads of the program can reach, and so may change during a replay."""

import sys
import threading
from types import FrameType
from typing import Any

from torch import Tensor

from eqtoolbox.replay.code import of_a_user
from eqtoolbox.replay.reach import Reach
from eqtoolbox.replay.scope import LeavesTrace
from eqtoolbox.replay.slots import Exchange, Slot

_WAITS = {  # for another thread to end: it changes nothing before
    ("threading", "_wait_for_tstate_lock"), ("threading", "join"),
    ("concurrent.futures._base", "result"), ("concurrent.futures._base", "wait"),
    ("concurrent.futures._base", "result_iterator"), ("concurrent.futures.thread", "shutdown"),
}  # fmt: skip

_TRIES = 3


def reached_by_others() -> dict[str, set[Any]]:
    """The marks of all slots in reach of calls that go on in other threads, by their names.

    Only of threads in which the program's own code runs and does not wait for others to end; none
    where it is too much to look at.
    """
    threads = [t for t in threading.enumerate() if t is not threading.current_thread()]
    if not threads:
        return {}
    stacks = sys._current_frames()
    del stacks[threading.get_ident()]  # or this call would hold itself, and all that it came from
    found = {}
    for thread in threads:
        calls = _calls(stacks.get(thread.ident or 0))
        if calls:
            found[thread.name] = _marks(calls)
    return found


def _marks(calls: list[FrameType]) -> set[Any]:
    for _ in range(_TRIES):
        try:
            return {mark for slot in _Theirs(calls).slots for mark in slot.marks()}
        except LeavesTrace:
            break
        except RuntimeError:  # a table has changed while it was read
            continue
    return set()


class _Theirs(Reach):
    """What another thread can reach, tensors by what they are only.

    That thread may be in the midst of a backward, in C++ and without Python's lock: to look at a
    gradient, a graph or an entry meanwhile would be a race that ends the process.
    """

    def read(self, thing: Any, path: Any) -> None:
        if not issubclass(type(thing), Tensor):
            super().read(thing, path)
            return
        self.keep(thing, path)
        self.attributes(thing, path)

    def keep(self, tensor: Tensor, path: Any) -> None:
        self.slots.append(_Met(tensor, path))

    def gradient(self, tensor: Tensor) -> Tensor | None:
        return None


class _Met(Slot):
    """A thing that is known by what it is only."""

    __slots__ = ()

    def moved(self, exchange: Exchange) -> bool:
        return False

    def put_back(self, exchange: Exchange) -> None:
        pass


def _calls(frame: FrameType | None) -> list[FrameType]:
    found = []
    while frame is not None:
        if (str(frame.f_globals.get("__name__")), frame.f_code.co_name) in _WAITS:
            return []
        if of_a_user(frame.f_code.co_filename):
            found.append(frame)
        frame = frame.f_back
    return found
