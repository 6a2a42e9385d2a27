"""Checkpoints: layers that run forward again in the backward find the state of their first run."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any


@contextmanager
def recomputed_within(state: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Scope in which checkpointed functions enter `state()` whenever they run.

    A backward may come when the parameters that were swapped in for the forward are out again:
    torch's non-reentrant checkpoint would then recompute with the live ones, and move the live
    buffers.
    """
    module = sys.modules.get("torch.utils.checkpoint")
    name = "_checkpoint_without_reentrant_generator"
    original = getattr(module, name, None)
    if original is None:
        yield
        return

    def keeping(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            with state():
                return function(*given, **named)

        return original(run, *args, **kwargs)

    setattr(module, name, keeping)
    try:
        yield
    finally:
        setattr(module, name, original)
