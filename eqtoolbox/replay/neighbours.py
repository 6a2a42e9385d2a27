"""Neighbours: what other threads of the program can reach, and so may change during a replay."""

import sys
import threading
from types import FrameType
from typing import Any

from eqtoolbox.replay.code import of_a_user
from eqtoolbox.replay.reach import Reach
from eqtoolbox.replay.scope import LeavesTrace

_WAITS = {  # for another thread to end: it changes nothing before
    ("threading", "_wait_for_tstate_lock"), ("threading", "join"),
    ("concurrent.futures._base", "result"), ("concurrent.futures._base", "wait"),
    ("concurrent.futures._base", "result_iterator"), ("concurrent.futures.thread", "shutdown"),
}  # fmt: skip


def others() -> list[tuple[str, list[FrameType]]]:
    """The other threads in which the program's own code runs: names, and the calls that go on."""
    threads = [t for t in threading.enumerate() if t is not threading.current_thread()]
    if not threads:
        return []
    stacks = sys._current_frames()
    calls = [(t.name, _calls(stacks.get(t.ident or 0))) for t in threads]
    return [(name, own) for name, own in calls if own]


def reached_by(calls: list[FrameType]) -> set[Any]:
    """The marks of all slots in reach of these calls; none where it is too much to look at."""
    try:
        return {mark for slot in Reach(calls).slots for mark in slot.marks()}
    except LeavesTrace:
        return set()


def _calls(frame: FrameType | None) -> list[FrameType]:
    found = []
    while frame is not None:
        if (str(frame.f_globals.get("__name__")), frame.f_code.co_name) in _WAITS:
            return []
        if of_a_user(frame.f_code.co_filename):
            found.append(frame)
        frame = frame.f_back
    return found
