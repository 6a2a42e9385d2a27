"""Checkpoints: layers that run forward again in the backward find the state of their first run."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from eqtoolbox.replay.calls import uncompiled
from eqtoolbox.replay.operations import Operations
from eqtoolbox.replay.thread.interception import Intercepted
from eqtoolbox.replay.thread.scope import current, inside

_MODULE = "torch.utils.checkpoint"
_RECOMPUTING = Intercepted((_MODULE,), "_checkpoint_without_reentrant_generator")
_REENTRANT = Intercepted((_MODULE, "CheckpointFunction"), "apply")


def recomputed_within(state: Callable[[], AbstractContextManager[Any]]) -> Any:
    """Scope in which checkpointed functions enter `state()` whenever they run.

    A backward may come when the parameters that were swapped in for the forward are out again:
    torch's non-reentrant checkpoint would then recompute with the live ones, and move the live
    buffers. It may also run in a thread of autograd's own.
    """
    replay = current()

    def keeping(original: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if replay is not None:
            replay.draw()  # the state of the random streams is noted now, for the backward

        def run(*given: Any, **named: Any) -> Any:
            with state():
                if replay is None or current() is replay:
                    return function(*given, **named)
                with inside(replay), uncompiled(), Operations():
                    return function(*given, **named)

        return original(run, *args, **kwargs)

    return _RECOMPUTING.answered_by(keeping)


def just_run() -> Any:
    """Scope in which checkpointed functions run as if they were not."""
    return _RECOMPUTING.answered_by(_once)


def just_run_reentrant() -> Any:
    """Scope in which reentrant checkpoints, which cut the graph, run as if they were not."""
    return _REENTRANT.answered_by(lambda _, function, preserve, *args: function(*args))


def _once(original: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A generator as torch's own: it stops where the function is to run, and is done."""
    yield
