"""The scope of a replay: which replay, if any, the running thread is inside of."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from eqtoolbox.replay.replay import Replay


class LeavesTrace(RuntimeError):
    """Evaluating the loss again would change the training; it was stopped before it did."""


class unobserved(ContextDecorator):  # entered too often to be a generator
    """Scope of a replay's own bookkeeping, which no mode of torch sees, exchanges or rounds.

    Nor does a transformation of torch.func that the evaluation goes on in: it would wrap copies.
    """

    def _recreate_cm(self) -> "unobserved":
        return unobserved()

    def __enter__(self) -> None:
        self._others: ExitStack | None = None
        if torch._C._len_torch_dispatch_stack() or peek_interpreter_stack() is not None:
            self._others = ExitStack()
            if torch._C._len_torch_dispatch_stack():
                self._others.enter_context(_disable_current_modes())
            if peek_interpreter_stack() is not None:
                self._others.enter_context(temporarily_clear_interpreter_stack())
        self._functions = torch._C.DisableTorchFunction()
        self._functions.__enter__()

    def __exit__(self, *failure: Any) -> None:
        self._functions.__exit__(*failure)
        if self._others is not None:
            self._others.close()


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
