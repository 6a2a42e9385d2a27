"""Batch norms whose statistics are those of a field: of all channels that the group exchanges."""

from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.enforce.average import Average


class Pooled:
    """Batch statistics averaged over the channels of an orbit, in training and in what is kept.

    mean = P E[x], var = P E[(x - mean)^2], P the average over the group. The channels of a field
    have different statistics on a batch that is not closed under the group: kept for evaluation
    they would break the law, and in training an answer would depend on how the other samples lie.
    Parameters and buffers are those of the plain norm.
    """

    pool: Average
    running_mean: Tensor | None
    running_var: Tensor | None

    def forward(self: Any, x: Tensor) -> Tensor:
        """The norm of a batch."""
        if not self.training and self.running_mean is not None:
            made: Tensor = type(self).plain.forward(self, x)
            return made
        self._check_input_dim(x)
        over = [d for d in range(x.dim()) if d != 1]
        wide = (1, -1, *(1,) * (x.dim() - 2))
        mean = self.pool(x.mean(over))
        var = self.pool((x - mean.reshape(wide)).square().mean(over))
        if self.training and self.running_mean is not None:
            self._remember(mean.detach(), var.detach(), x.numel() // x.shape[1])
        y = (x - mean.reshape(wide)) * (var + self.eps).rsqrt().reshape(wide)
        if self.weight is not None:
            y = y * self.weight.reshape(wide) + self.bias.reshape(wide)
        made = y
        return made

    @torch.no_grad()
    def _remember(self: Any, mean: Tensor, var: Tensor, count: int) -> None:
        if count < 2:
            raise ValueError(f"expected more than 1 value a channel in training, got {count}")
        self.num_batches_tracked.add_(1)
        rate = self.momentum
        rate = 1.0 / float(self.num_batches_tracked) if rate is None else rate
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(var * (count / (count - 1)), rate)

    @torch.no_grad()
    def settle(self: Any) -> None:
        """Make the kept statistics those of fields: mean of the means, variance of the mixture."""
        if self.running_mean is None:
            return
        mean = self.pool(self.running_mean)
        spread = (self.running_mean - mean).square()
        self.running_var.copy_(self.pool(self.running_var + spread))
        self.running_mean.copy_(mean)


class PooledBatchNorm1d(Pooled, nn.BatchNorm1d):
    """BatchNorm1d of fields."""

    plain = nn.BatchNorm1d


class PooledBatchNorm2d(Pooled, nn.BatchNorm2d):
    """BatchNorm2d of fields."""

    plain = nn.BatchNorm2d


class PooledBatchNorm3d(Pooled, nn.BatchNorm3d):
    """BatchNorm3d of fields."""

    plain = nn.BatchNorm3d


POOLED: dict[type[nn.Module], type[Any]] = {
    kind.plain: kind for kind in (PooledBatchNorm1d, PooledBatchNorm2d, PooledBatchNorm3d)
}
