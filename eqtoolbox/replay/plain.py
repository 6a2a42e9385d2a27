"""Plain: a layer's call whose second derivative may be ours, as nothing but torch's CPU runs it."""

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.overrides import _get_current_function_mode_stack


def differentiates_twice(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether reverse derivatives, two maybe, are to come of what torch's kernels take as it is.

    Nor may another mode be waiting to hear of the call, as one that scales epsilons or traces.

    Example:
        >>> differentiates_twice(torch.ones(2), torch.ones(2, requires_grad=True))
        True
    """
    tensors = [x, *(w for w in weights if w is not None)]
    return (
        torch.is_grad_enabled()
        and x.dtype in (torch.float32, torch.float64)
        and all(type(t) in (Tensor, nn.Parameter) for t in tensors)
        and all(t.device.type == "cpu" and t.dtype == x.dtype for t in tensors)
        and any(t.requires_grad for t in tensors)
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
        and peek_interpreter_stack() is None
        and not torch._C._len_torch_dispatch_stack()
        and not _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    )
