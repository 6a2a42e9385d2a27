"""Eager: hooks that torch.compile leaves alone, where it compiles what calls them."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def eager(hook: F) -> F:
    """`hook`, never traced and with nothing inside it compiled; as `torch.compiler.disable` does.

    That would import the compiler, which takes a second, for programs that compile nothing.
    """
    untraced: list[Any] = []

    @functools.wraps(hook)
    def run(*args: Any) -> Any:
        if "torch._dynamo.eval_frame" not in sys.modules:
            return hook(*args)
        if not untraced:
            untraced.append(sys.modules["torch._dynamo.eval_frame"].DisableContext()(hook))
        return untraced[0](*args)

    run._torchdynamo_disable = True  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]
