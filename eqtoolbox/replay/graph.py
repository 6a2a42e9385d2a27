"""Graphs: what a backward inside of a loss reaches, and what it leaves there."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def leaves_of(outputs: Any) -> Iterator[Tensor]:
    """The leaf tensors that the graphs of one output, or of several, end in.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> [leaf is x for leaf in leaves_of(x.sum())]
        [True]
    """
    given = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    waiting: list[Any] = [x.grad_fn for x in given if isinstance(x, Tensor)]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            yield node.variable
        waiting.extend(inner for inner, _ in node.next_functions)


@contextmanager
def ungraded(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Scope that these begin without gradients, and leave with those they had."""
    with torch._C.DisableTorchFunction():  # no mode need hear of it
        before = [(t, t.grad) for t in tensors if t.is_leaf]
        for t, _ in before:
            t.grad = None
    try:
        yield
    finally:
        with torch._C.DisableTorchFunction():
            for t, grad in before:
                t.grad = grad
