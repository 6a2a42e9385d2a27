"""Outside: what an evaluation would do beyond its process is refused before it happens.

Python announces files that are opened, processes that are started and connections that are made to
audit hooks. One is added with the first replay of a process; it only looks at threads that are
inside the evaluation of a replay. What was open before is found by the walk.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from eqtoolbox.replay.reach.code import OURS
from eqtoolbox.replay.thread.interception import Intercepted
from eqtoolbox.replay.thread.scope import current

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_BEYOND = {
    "os.chmod": "changes a file", "os.fork": "starts a process", "os.link": "makes a link",
    "os.mkdir": "makes a directory", "os.posix_spawn": "starts a process",
    "os.remove": "removes a file", "os.rename": "renames a file", "os.rmdir": "removes a directory",
    "os.symlink": "makes a link", "os.system": "starts a process", "os.truncate": "changes a file",
    "socket.bind": "opens a connection", "socket.connect": "opens a connection",
    "socket.sendto": "opens a connection", "sqlite3.connect": "opens a database",
    "subprocess.Popen": "starts a process",
}  # fmt: skip
_PROCESS = Intercepted(("multiprocessing.process", "BaseProcess"), "start")
_lock = threading.Lock()
_added: list[bool] = []


def watch() -> None:
    """Add the hook, once for a process."""
    with _lock:
        if not _added:
            sys.addaudithook(_heard)
            _added.append(True)


@contextmanager
def no_processes() -> Iterator[None]:
    """Scope in which the evaluation starts no process by `multiprocessing`, whichever way."""
    with _PROCESS.answered_by(_started):
        yield


def _started(original: Any, process: Any) -> None:
    replay = current()
    if replay is not None and replay.frames:
        replay.refuse(_why("starts a process", process.name))
    original(process)


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if event != "open" and event not in _BEYOND:  # as for each look at what a function is made of
        return
    replay = current()
    if replay is None or not replay.frames:
        return
    what = _BEYOND.get(event)
    if event == "open" and _for_writing(*args):
        what = "writes a file"
    if what is not None and args[:1] != (":memory:",) and not _imports():
        replay.refuse(_why(what, *args[:1]))


def _why(what: str, *which: Any) -> str:
    named = "".join(f" ({one!s:.200})" for one in which)
    return (
        f"the loss {what}{named}: evaluating it again would do so again, so that probes that do "
        "are switched off; do it outside the loss"
    )


def _imports() -> bool:
    """Whether a module is being imported: once for a process, and half of it must not stay."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(OURS):
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False  # as far as the evaluation; a whole program may run beneath an import


def _for_writing(path: Any, mode: Any, flags: Any) -> bool:
    named = str(path)
    if not isinstance(flags, int) or not flags & _WRITES or isinstance(path, int):
        return False
    return "__pycache__" not in named and not named.startswith("/dev/")
