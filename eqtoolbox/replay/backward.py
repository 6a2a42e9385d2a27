"""Backward: what `tensor.backward()` does inside a replay.

A loss that runs the training's own backward, as closures do, fills gradients that a replay has no
use for. One that runs a backward for itself (an attack on its inputs, a score) reads `.grad` of
tensors that it made: these are filled, and the graph stays for whoever differentiates the loss.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.capture.loss_parameters import leaves_of


class _Here(threading.local):
    given: frozenset[int] = frozenset()
    filled: list[tuple[Tensor, Tensor | None]] | None = None  # with what their `.grad` was before


_here = _Here()


@contextmanager
def given(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Scope of an evaluation at these parameters, whose gradients are not its own business.

    When it ends, every `.grad` is what it was.
    """
    before = _here.given, _here.filled
    filled: list[tuple[Tensor, Tensor | None]] = []
    _here.given, _here.filled = frozenset(map(id, parameters)), filled
    try:
        yield
    finally:
        for x, slope in reversed(filled):
            x.grad = slope
        _here.given, _here.filled = before


def backward(
    tensor: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Adds to `.grad` of `inputs`, or of all leaves that are no parameters of the evaluation."""
    if inputs is None:
        leaves = [x for x in leaves_of(tensor) if id(x) not in _here.given]
    else:
        leaves = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if not leaves:
        return
    found = torch.autograd.grad(
        tensor, leaves, gradient, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    for x, slope in zip(leaves, found, strict=True):
        if slope is not None:
            if _here.filled is not None:
                _here.filled.append((x, x.grad))
            x.grad = slope if x.grad is None else x.grad + slope
