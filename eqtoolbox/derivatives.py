"""Second derivatives: torch's operations that have none, or a wrong one, exchanged for their twins.

Each of these would fail, or give wrong Hessian products without a word (torch 2.13).
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

_ATTENTION: set[Any] = {F.scaled_dot_product_attention, F.multi_head_attention_forward}


class _Twins(TorchFunctionMode):
    """Attention on the mathematical kernel, whatever the user's inner choice; weight_norm plain."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _ATTENTION:
            with sdpa_kernel(SDPBackend.MATH):  # fused kernels have no second derivative
                return func(*args, **(kwargs or {}))
        if func is torch._weight_norm:  # its backward loses the norm's own derivative
            return weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v|, the norm over all dimensions but `dim`, from operations that differentiate."""
    scaled: Tensor = v * (g / torch.norm_except_dim(v, 2, dim))
    return scaled


@contextmanager
def twice_differentiable(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Scope in which calls of `modules` can be differentiated twice.

    Compiled code runs eagerly, cuDNN's recurrent kernels are off where there are recurrent
    layers, and reentrant checkpoints, which cut the graph, just run.
    """
    with ExitStack() as scope:
        scope.enter_context(sdpa_kernel(SDPBackend.MATH))
        scope.enter_context(_Twins())
        if any(isinstance(m, nn.RNNBase) for module in modules for m in module.modules()):
            scope.enter_context(_without_cudnn())
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and the import is slow
            scope.enter_context(torch.compiler.set_stance("force_eager"))
        if "torch.utils.checkpoint" in sys.modules:
            cut = torch.utils.checkpoint.CheckpointFunction
            scope.enter_context(mock.patch.object(cut, "apply", _just_run))
        yield


def _just_run(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
    return function(*args)


@contextmanager
def _without_cudnn() -> Iterator[None]:
    enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled
