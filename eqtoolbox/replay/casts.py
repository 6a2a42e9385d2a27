"""Casts: what goes into a module and comes out of it, where training computes in a type of its own.

Mixed precision of FSDP2 casts at the calls of modules, in hooks that also gather parameters. A
replay leaves these hooks out, and casts.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.replay.thread.scope import place
from eqtoolbox.replay.tree import map_tensors


@dataclass(frozen=True, kw_only=True)
class Cast:
    """At the call of one module; None leaves things as they are."""

    device: torch.device | None = None  # of inputs
    inputs: torch.dtype | None = None  # of those that are floating-point
    output: torch.dtype | None = None  # likewise


_shown: dict[Any, list[Mapping[int, Cast]]] = {}  # by the evaluation, of modules by identity


@contextmanager
def casting(modules: Mapping[int, Cast]) -> Iterator[None]:
    """Scope in which this evaluation casts at the calls of these modules."""
    here = place()
    _shown.setdefault(here, []).append(modules)
    try:
        yield
    finally:
        _shown[here].pop()
        if not _shown[here]:
            del _shown[here]


def cast_inputs(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Arguments as the module is to get them."""
    cast = _of(module)
    if cast is None or (cast.inputs is None and cast.device is None):
        return args, kwargs

    def to(x: Tensor) -> Tensor:
        x = x if cast.device is None else x.to(cast.device)
        return _floating(x, cast.inputs)

    return map_tensors(to, args), map_tensors(to, kwargs)


def cast_output(module: nn.Module, output: Any) -> Any:
    """Its output as others are to get it."""
    cast = _of(module)
    if cast is None or cast.output is None:
        return output
    return map_tensors(lambda x: _floating(x, cast.output), output)


def _of(module: nn.Module) -> Cast | None:
    mine = _shown.get(place()) if _shown else None
    return mine[-1].get(id(module)) if mine else None


def _floating(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x if dtype is None or not x.is_floating_point() else x.to(dtype)
