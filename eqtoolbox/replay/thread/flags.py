"""Flags: modules in training or in evaluation mode, for the thread that evaluates them only."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from eqtoolbox.replay.thread.scope import place

_lock = threading.Lock()
_shown: dict[Any, dict[int, bool]] = {}  # by whose evaluation goes on, by the id of a module


class _Training:
    """Stands in `nn.Module` while flags are shown; each module's own is in its attributes."""

    def __get__(self, module: Any, kind: Any = None) -> Any:
        mine = _shown.get(place())
        if mine is not None and id(module) in mine:
            return mine[id(module)]
        if module is None or "training" not in vars(module):
            raise AttributeError("training")
        return vars(module)["training"]

    def __set__(self, module: Any, value: bool) -> None:
        mine = _shown.get(place())
        if mine is not None and id(module) in mine:
            mine[id(module)] = value
        else:
            vars(module)["training"] = value


@contextmanager
def shown(flags: dict[int, bool]) -> Iterator[None]:
    """Scope in which modules, by their ids, have these flags here, and their own elsewhere."""
    key = place()
    before = _shown.get(key)
    with _lock:
        _shown[key] = {**(before or {}), **flags}
        if "training" not in vars(nn.Module):
            nn.Module.training = _Training()  # type: ignore[assignment]
    try:
        yield
    finally:
        with _lock:
            if before is None:
                del _shown[key]
            else:
                _shown[key] = before
            if not _shown:
                del nn.Module.training
