"""Batch normalisation whose gradient is torch's, and whose second derivative costs what it must.

Torch spells that derivative out in some forty products of whole activations (torch 2.13), which
are most of a convolutional network's Hessian product. Three sums and three products will do.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eqtoolbox.replay.plain import differentiates_twice


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """gamma (x - m) / sqrt(v + eps) + beta by the statistics of the batch.

    Value and gradient are torch's own, bit for bit. Whatever else a call may be is left to torch:
    running statistics, other devices and dtypes, forward mode, transforms.

    Args:
        input, ..., eps: as in `torch.nn.functional.batch_norm`.

    Example:
        >>> x, one = torch.tensor([[1.0], [3.0]]), torch.ones(1)
        >>> batch_norm(x, None, None, one, 0 * one, training=True).round()
        tensor([[-1.],
                [ 1.]])
    """
    several = input.dim() > 1 and input.numel() > input.shape[1]  # torch refuses one by name
    affine = weight is not None and bias is not None
    known = training and eps > 0 and several and affine
    if known and differentiates_twice(input, weight, bias):
        rest = running_mean, running_var, momentum, eps
        made: Tensor = NativeBatchNorm.apply(input, weight, bias, *rest)  # type: ignore[no-untyped-call]
        return made
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


class NativeBatchNorm(torch.autograd.Function):
    """Torch's kernel, with a backward that is differentiated below."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        mean, var, momentum, eps = rest
        y, centre, rate = torch.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps)
        ctx.save_for_backward(x, weight, centre, rate)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        given = *slopes, *ctx.saved_tensors, ctx.eps
        rows = NativeBatchNormBackward.apply(*given)  # type: ignore[no-untyped-call]
        return (*rows, None, None, None, None)


class NativeBatchNormBackward(torch.autograd.Function):
    """Torch's kernel of the gradient: by x, gamma and beta.

    With h = (x - m) r, r = 1 / sqrt(v + eps) and means over all but the channel,
    g_x = gamma r (g - <g> - h <g h>), g_gamma = n <g h>, g_beta = n <g>.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Any:
        centre, rate, eps = rest
        ctx.save_for_backward(g, x, weight, centre, rate)
        ctx.eps = eps
        return torch.ops.aten.native_batch_norm_backward(
            g, x, weight, None, None, centre, rate, True, eps, [True, True, True]
        )

    @staticmethod
    def backward(ctx: Any, *seeds: Tensor) -> Any:
        """Of S = <u, g_x> + <s, g_gamma> + <t, g_beta>, by g, x and gamma."""
        g, x, weight, centre, rate = ctx.saved_tensors
        u, s, t = seeds
        over = [k for k in range(x.dim()) if k != 1]
        wide = [1, -1] + [1] * (x.dim() - 2)
        if torch.is_grad_enabled():  # once more: by statistics that depend on x
            centre = x.mean(over)
            rate = (x.var(over, correction=0) + ctx.eps).rsqrt()

        def spread(c: Tensor) -> Tensor:
            return c.view(wide)

        count = x.numel() // x.shape[1]
        h = (x - spread(centre)).mul_(spread(rate))
        mean_g, mean_u = g.mean(over), u.mean(over)
        gh, uh, ug = ((a * b).mean(over) for a, b in ((g, h), (u, h), (u, g)))
        left, scale = ug - mean_u * mean_g - uh * gh, weight * rate
        inner = s - scale * uh
        # in place, as fresh memory costs more than the products
        by_g = (u * spread(scale)).addcmul_(h, spread(inner)).add_(spread(t - scale * mean_u))
        mean = inner * mean_g - scale * gh * mean_u  # of the slope by h
        along = (s - 2 * scale * uh) * gh  # its mean with h
        by_x = (g * spread(rate * inner)).addcmul_(u, spread(-rate * scale * gh))
        by_x = by_x.addcmul_(h, spread(-rate * (along + scale * left))).sub_(spread(rate * mean))
        return by_g, by_x, rate * count * left, None, None, None
