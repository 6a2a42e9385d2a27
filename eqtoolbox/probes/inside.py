"""Inside: whether a loss differentiates, and whether what comes out stays in its graph."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_BACKWARDS = frozenset({torch.autograd.grad, torch.autograd.backward, Tensor.backward})


class Inside(TorchFunctionMode):
    """Scope that notes derivatives taken in it, by torch.autograd or by torch.func.

    Attributes:
        kept: whether one was taken that can be differentiated again.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> with Inside() as inside:
        ...     slope = torch.autograd.grad((x**3).sum(), x, create_graph=True)
        >>> inside.kept
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        forward = getattr(func, "__name__", "") == "_make_dual"
        self.kept |= forward or (func in _BACKWARDS and not cuts(func, args, kwargs))
        return func(*args, **kwargs)


def cuts(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a function is a derivative that is a constant to what comes after it."""
    if func not in _BACKWARDS:
        return False
    place = 4 if func is torch.autograd.grad else 3
    return not (kwargs.get("create_graph") or (len(args) > place and args[place]))
