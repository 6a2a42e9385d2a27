"""Broadcast: predictions and targets of one number per sample that are compared all with all."""

from collections.abc import Collection
from typing import Any

from torch import Tensor

from eqtoolbox.watch.vitals.storage import place

Shapes = tuple[tuple[int, ...], tuple[int, ...]]


def outer(given: dict[str, Any], outputs: Collection[int]) -> Shapes | None:
    """Shapes of what an operation compares, where a column and a row become a square; else None.

    Args:
        given: `self` with `target` or `other`, broadcast already or not.
        outputs: storages that the model gave out: one of the two lies in them, the other not.

    Example:
        >>> import torch
        >>> x, y = torch.zeros(8, 1), torch.zeros(8)
        >>> outer({"self": x, "other": y}, {place(x)})
        ((8, 1), (8,))
    """
    one, two = given.get("self"), given.get("target", given.get("other"))
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return None
    own = [place(x) in outputs for x in (one, two)]
    if sum(own) != 1:
        return None
    first, second = given_shape(one), given_shape(two)
    column, row = (first, second) if len(first) == 2 else (second, first)
    if len(column) != 2 or column[1] != 1 or row != column[:1] or row[0] < 2:
        return None
    return (first, second) if own[0] else (second, first)


def given_shape(x: Tensor) -> tuple[int, ...]:
    """The shape before a tensor was expanded, without leading ones."""
    shape = [1 if step == 0 else size for size, step in zip(x.shape, x.stride(), strict=True)]
    while shape and shape[0] == 1:
        shape.pop(0)
    return tuple(shape)


def narrow(x: Tensor) -> Tensor:
    """A tensor before its first axis was expanded."""
    return x[0] if x.dim() > 1 and x.stride(0) == 0 else x
