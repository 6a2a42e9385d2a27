"""Neighbours: what other threads of the program can reach, and so may change during a replay."""

import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from eqtoolbox.replay.reach.code import of_a_user
from eqtoolbox.replay.reach.reach import Reach
from eqtoolbox.replay.thread.scope import LeavesTrace

_WAITS = {  # for another thread to end: it changes nothing before
    ("threading", "_wait_for_tstate_lock"), ("threading", "join"),
    ("concurrent.futures._base", "result"), ("concurrent.futures._base", "wait"),
    ("concurrent.futures._base", "result_iterator"), ("concurrent.futures.thread", "shutdown"),
}  # fmt: skip


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
            with suppress(LeavesTrace):
                found[thread.name] = {m for slot in Reach(calls).slots for m in slot.marks()}
    return found


def _calls(frame: FrameType | None) -> list[FrameType]:
    found = []
    while frame is not None:
        if (str(frame.f_globals.get("__name__")), frame.f_code.co_name) in _WAITS:
            return []
        if of_a_user(frame.f_code.co_filename):
            found.append(frame)
        frame = frame.f_back
    return found
