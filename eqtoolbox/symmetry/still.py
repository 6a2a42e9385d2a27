"""Linear layers whose weights do not move: torch would multiply x by zero tangents of them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_linear = F.linear  # the original, whatever stands in for it


def still_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, forward derivatives of x alone."""
    found: Tensor = _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
    return found


class _Linear(torch.autograd.Function):
    """x W^T + b as a function of x alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _linear(x.contiguous(), weight, bias)  # else a product a sample

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.set_materialize_grads(False)  # no zeros in the shape of W
        ctx.save_for_forward(inputs[1])
        ctx.save_for_backward(*inputs[:2])
        ctx.biased = inputs[2] is not None

    @staticmethod
    def jvp(ctx: Any, x: Tensor, *_: Any) -> Tensor:
        return _linear(x.contiguous(), ctx.saved_tensors[-1])

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        """For models that take gradients inside, such as forces of an energy."""
        x, weight = ctx.saved_tensors
        if g is None:
            return None, None, None
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = g.reshape(-1, g.shape[-1])
        return (
            g @ weight if of_x else None,
            rows.T @ x.reshape(-1, x.shape[-1]) if of_weight else None,
            rows.sum(0) if of_bias and ctx.biased else None,
        )
