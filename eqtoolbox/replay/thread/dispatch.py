"""Dispatch: a mode of torch that does not bring the compiler in."""

import sys
from typing import Any

from torch._compile import _disable_dynamo
from torch.utils._python_dispatch import TorchDispatchMode


class Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode whose `answer` is asked for every operation, and never compiled.

    torch imports its compiler to keep it from compiling what a mode does: a second and 90 MiB. What
    has not been imported compiles nothing.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # it is done here, and only where there is one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = _uncompiled if "torch._dynamo" in sys.modules else _plainly
        return asked(self, func, args, kwargs or {})

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `func(*args, **kwargs)` is to be."""
        raise NotImplementedError


def _plainly(mode: Dispatch, func: Any, args: Any, kwargs: Any) -> Any:
    return mode.answer(func, args, kwargs)


_uncompiled = _disable_dynamo(_plainly)
