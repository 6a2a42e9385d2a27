"""The scope of a replay: which replay, if any, the running thread is inside of."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from eqtoolbox.replay.replay import Replay


class LeavesTrace(RuntimeError):
    """Evaluating the loss again would change the training; it was stopped before it did."""


@contextmanager
def unobserved() -> Iterator[None]:
    """Scope of a replay's own bookkeeping, which no mode of torch sees, exchanges or rounds.

    Nor does a transformation of torch.func that the evaluation goes on in: it would wrap copies.
    """
    with ExitStack() as scope:
        scope.enter_context(torch._C.DisableTorchFunction())
        if torch._C._len_torch_dispatch_stack():
            scope.enter_context(_disable_current_modes())
        if peek_interpreter_stack() is not None:
            scope.enter_context(temporarily_clear_interpreter_stack())
        yield


class _Here(threading.local):
    replay: "Replay | None" = None


_here = _Here()


def current() -> "Replay | None":
    """The replay that this thread is inside of; None while it trains or does anything else."""
    return _here.replay


def place() -> int:
    """Whose evaluation goes on here: of the thread that began this thread's replay, or its own."""
    return threading.get_ident() if _here.replay is None else _here.replay.place


def only_here(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook of ours on a module, which is silent where other threads call that module."""
    mine = place()
    return lambda *given: hook(*given) if place() == mine else None


@contextmanager
def inside(replay: "Replay") -> Iterator[None]:
    """Scope in which this thread belongs to `replay`; autograd's own threads enter it too."""
    before, _here.replay = _here.replay, replay
    try:
        yield
    finally:
        _here.replay = before
