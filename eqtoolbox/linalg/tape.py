"""The tape: the nodes that torch keeps of a computation, one for each backward to come."""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def nodes(roots: Sequence[Tensor]) -> list[Any]:
    """All nodes that a backward from `roots` runs, but for those that store gradients.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> sorted(operation(node) for node in nodes([torch.relu(x).sum()]))
        ['relu', 'sum']
    """
    seen: dict[Any, None] = {}
    stack: list[Any] = [t.grad_fn for t in roots if t.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node not in seen and not node.name().endswith("AccumulateGrad"):
            seen[node] = None
            stack.extend(parent for parent, _ in node.next_functions if parent is not None)
    return list(seen)


def operation(node: Any) -> str:
    """The operation that a node is the backward of, as torch spells it in Python."""
    name = re.sub(r"Backward\w?\d*$", "", node.name().rpartition("::")[2])
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
