"""Modes: those that a replay itself puts around what it evaluates."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile

from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    _push_mode,
)


class OwnMode(TorchFunctionMode):
    """A mode of a replay's own."""


@contextmanager
def unheard() -> Iterator[None]:
    """Scope of a replay's own preparations, of which the innermost modes need hear nothing."""
    stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    own = [*takewhile(lambda mode: isinstance(mode, OwnMode), reversed(stack))]
    for _ in own:
        _pop_mode()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for mode in reversed(own):
            _push_mode(mode)  # type: ignore[no-untyped-call]
