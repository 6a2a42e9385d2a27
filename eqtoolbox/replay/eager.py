"""Eager: hooks that torch.compile leaves alone, where it compiles what calls them."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._C._dynamo import eval_frame

from eqtoolbox.replay.thread.apart import Apart

F = TypeVar("F", bound=Callable[..., Any])


def recorded() -> bool:
    """Whether what runs is being recorded as a CUDA graph, in which nothing may wait for it."""
    begun: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return begun and torch.cuda.is_current_stream_capturing()


def untraced(hook: F) -> F:
    """`hook`, never traced; what it calls may be compiled: it should call nothing of ours."""
    hook._torchdynamo_disable = True  # type: ignore[attr-defined]
    return hook


def eager(hook: F) -> F:
    """`hook`, never traced and with nothing inside it compiled; as `torch.compiler.disable` does.

    That would import the compiler, which takes a second, for programs that compile nothing. Where
    nothing is being compiled the hook is called as it is: leaving and entering takes microseconds.
    Modes of the program's own are not told of what it does.
    """
    disabled: list[Any] = []
    compiling = getattr(eval_frame, "get_eval_frame_callback", None)

    def apart(*args: Any) -> Any:
        with Apart():
            return hook(*args)

    @untraced
    @functools.wraps(hook)
    def run(*args: Any) -> Any:
        if compiling is not None and compiling() is None:
            return apart(*args)
        compiler = sys.modules.get("torch._dynamo.eval_frame")
        if compiler is None:
            return apart(*args)
        if not disabled:
            disabled.append(compiler.DisableContext()(apart))
        return disabled[0](*args)

    return run  # type: ignore[return-value]
