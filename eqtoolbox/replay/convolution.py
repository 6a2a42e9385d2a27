"""Convolution whose gradient is torch's, and whose second derivative makes what is asked for.

Torch makes the slope by the input of a first layer as well, by a kernel as wide as the image (torch
2.13): that is a third of a convolutional network's Hessian product.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.replay.plain import differentiates_twice

_KERNEL = torch.ops.aten.convolution
_SLOPES = torch.ops.aten.convolution_backward


def convolution(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One of torch's convolutions. Whatever the kernel does not take as it is goes to torch.

    Args:
        function: `torch.conv1d`, `conv2d` or `conv3d`.

    Example:
        >>> x, weight = torch.ones(1, 1, 3), torch.ones(1, 1, 2, requires_grad=True)
        >>> convolution(torch.conv1d)(x, weight).tolist()
        [[[2.0, 2.0]]]
    """

    def convolve(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        given, axes = (stride, padding, dilation), weight.dim() - 2
        batched = input.dim() == weight.dim() and not isinstance(padding, str)
        if not batched or not differentiates_twice(input, weight, bias):
            return function(input, weight, bias, *given, groups)
        sides = [[n] * axes if isinstance(n, int) else [*n] * (axes // len(n)) for n in given]
        how = (*sides, False, [0] * axes, groups)
        made: Tensor = Convolution.apply(input, weight, bias, how)  # type: ignore[no-untyped-call]
        return made

    return convolve


class Convolution(torch.autograd.Function):
    """Torch's kernel, with a backward that is differentiated below."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.sizes = how, None if bias is None else [len(bias)]
        made: Tensor = _KERNEL(x, weight, bias, *how)
        return made

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        how = ctx.sizes, ctx.how, [*ctx.needs_input_grad[:3]]
        given = *slopes, *ctx.saved_tensors, *how
        rows = ConvolutionBackward.apply(*given)  # type: ignore[no-untyped-call]
        return (*rows, None)


class ConvolutionBackward(torch.autograd.Function):
    """Torch's kernel of the gradient g_x = D(g, w), g_w = E(g, x), g_b = sum g: bilinear all."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Any:
        sizes, how, asked = rest
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)
        ctx.how = how
        return tuple(_SLOPES(g, x, weight, sizes, *how, asked))

    @staticmethod
    def backward(ctx: Any, *seeds: Tensor | None) -> Any:
        """Of S = <u, g_x> + <v, g_w> + <s, g_b>, by g, x and w."""
        g, x, weight = ctx.saved_tensors
        by_g, by_x, by_weight = ctx.needs_input_grad[:3]
        u, v, s = seeds
        rows: list[Tensor | None] = [None, None, None]
        if by_g:
            terms = [] if u is None else [_KERNEL(u, weight, None, *ctx.how)]
            terms += [] if v is None else [_KERNEL(x, v, None, *ctx.how)]
            terms += [] if s is None else [s.view(-1, *[1] * (g.dim() - 2)).expand_as(g)]
            rows[0] = sum(terms[1:], terms[0]) if terms else None
        if by_x and v is not None:
            rows[1] = _SLOPES(g, x, v, None, *ctx.how, [True, False, False])[0]
        if by_weight and u is not None:
            rows[2] = _SLOPES(g, u, weight, None, *ctx.how, [False, True, False])[1]
        return (*rows, None, None, None)
