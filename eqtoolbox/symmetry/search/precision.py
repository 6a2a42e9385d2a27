"""Full precision: a model's own casts to narrower types are kept from rounding a float64 check.

Models compute normalisations, rotary angles or the loss in float32 whatever their parameters are;
that would hide everything below 1e-7. What they cast to a narrower floating type is cast to
float64 instead.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NARROW = {torch.float32, torch.float16, torch.bfloat16}
_CASTS = {Tensor.float, Tensor.half, Tensor.bfloat16}


class FullPrecision(TorchFunctionMode):
    """Scope in which every cast to a floating type is one to float64.

    Example:
        >>> with FullPrecision():
        ...     torch.ones(2, dtype=torch.float64).float().dtype
        torch.float64
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _CASTS:
            return args[0].double()
        wide = tuple(_widened(a) for a in args)
        return func(*wide, **{k: _widened(a) for k, a in (kwargs or {}).items()})


def _widened(argument: Any) -> Any:
    narrow = isinstance(argument, torch.dtype) and argument in _NARROW
    return torch.float64 if narrow else argument
