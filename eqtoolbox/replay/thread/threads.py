"""Threads: those that an evaluation starts belong to its replay, as the code that started them."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from eqtoolbox.replay.thread.interception import Intercepted, inherited
from eqtoolbox.replay.thread.scope import current, inside

if TYPE_CHECKING:
    from eqtoolbox.replay.replay import Replay

_START = Intercepted(("threading", "Thread"), "start")
PATIENCE = 0.2  # seconds that a thread may take to end after the evaluation


@contextmanager
def followed() -> Iterator[None]:
    """Scope in which threads that are started while a loss is evaluated enter its replay, too."""
    with _START.answered_by(_follow):
        yield


def _follow(original: Any, thread: Any) -> None:
    replay = current()
    if replay is not None and replay.frames:
        run, scope = thread.run, _like_here(replay)

        def belonging() -> None:
            try:
                with scope:
                    run()
            except Exception as error:  # told where the loss fails for want of what it was to do
                replay.failures.append(error)

        thread.run = belonging
        replay.threads.append(thread)
    original(thread)


@contextmanager
def _inside(replay: "Replay", modes: list[Any], answers: Any, profile: Any) -> Iterator[None]:
    with ExitStack() as scope:
        if callable(profile):
            scope.callback(sys.setprofile, None)
            sys.setprofile(profile)
        scope.enter_context(inside(replay))
        scope.enter_context(answers)
        for mode in modes:
            scope.enter_context(mode)
        yield


def _like_here(replay: "Replay") -> Any:
    functions: Any = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    modes = [*functions, *_get_current_dispatch_mode_stack()]
    return _inside(replay, modes, inherited(), sys.getprofile())


def left_running(threads: list[Any]) -> str:
    """The name of one that has not ended; empty where all have."""
    for thread in threads:
        thread.join(PATIENCE)
        if thread.is_alive():
            return str(thread.name)
    return ""
