"""Unmixed: a scope in which no autocast is entered, whoever asks for one.

An autocast around a loss can be left out when the loss is replayed; one that the loss, the model
or a decorator of either enters by itself is entered here with nothing to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from eqtoolbox.replay.thread.interception import Intercepted

_AUTOCAST = ("torch.amp.autocast_mode", "autocast")
_ENTER = Intercepted(_AUTOCAST, "__enter__")
_EXIT = Intercepted(_AUTOCAST, "__exit__")


@contextmanager
def unmixed() -> Iterator[list[str]]:
    """Scope of this thread in which autocasts are entered switched off; lists their devices.

    Example:
        >>> with unmixed(), torch.autocast("cpu", dtype=torch.bfloat16):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    inside: list[torch.autocast] = []
    met: list[str] = []

    def enter(original: Any, asked: torch.autocast) -> torch.autocast:
        met.append(asked.device)
        inside.append(torch.autocast(asked.device, enabled=False))
        original(inside[-1])
        return asked

    def leave(original: Any, asked: torch.autocast, *error: Any) -> Any:
        return original(inside.pop() if inside else asked, *error)

    with _ENTER.answered_by(enter), _EXIT.answered_by(leave):
        yield met
