"""Precision: how finely a piece of program computes."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_EXACT = frozenset({  # which round nothing: copies, and what is drawn or not yet written
    "alias", "clone", "detach", "lift_fresh", "empty", "empty_like", "rand", "rand_like", "randn",
    "randn_like", "normal", "normal_", "uniform_", "exponential_", "cauchy_", "log_normal_",
    "bernoulli", "bernoulli_", "poisson", "geometric_", "random_",
})  # fmt: skip


class Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the coarsest rounding among the results of all operations, autocast included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.eps = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        many = isinstance(result, list | tuple)
        exact = func.overloadpacket.__name__ in _EXACT
        for x in () if exact else result if many else (result,):
            if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()):
                self.eps = max(self.eps, torch.finfo(x.dtype).eps)
        if not many:
            return self.seen(func, result)
        return type(result)([self.seen(func, x) for x in result])

    def seen(self, func: Any, x: Any) -> Any:
        """What the program gets for a result."""
        return x
