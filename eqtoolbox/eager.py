"""Eager: hooks that torch.compile leaves alone, where it compiles what calls them."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from torch._C._dynamo import eval_frame

F = TypeVar("F", bound=Callable[..., Any])


def eager(hook: F) -> F:
    """`hook`, never traced and with nothing inside it compiled; as `torch.compiler.disable` does.

    That would import the compiler, which takes a second, for programs that compile nothing. Where
    nothing is being compiled the hook is called as it is: leaving and entering takes microseconds.
    """
    untraced: list[Any] = []

    @functools.wraps(hook)
    def run(*args: Any) -> Any:
        compiler = sys.modules.get("torch._dynamo.eval_frame")
        if compiler is None or _nothing_compiles():
            return hook(*args)
        if not untraced:
            untraced.append(compiler.DisableContext()(hook))
        return untraced[0](*args)

    run._torchdynamo_disable = True  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]


def _nothing_compiles() -> bool:
    """Whether the frames that are called now are run as they are; False if that is not known."""
    callback = getattr(eval_frame, "get_eval_frame_callback", None)
    return callback is not None and callback() is None
