"""Normalisations of torch as formulas, with what is to be added in place of their epsilon."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Plus = Callable[[Tensor, float], Tensor]  # (what it is added to, epsilon) -> what to add


def _normalised(plus: Plus, x: Tensor, dims: list[int], eps: float, centred: bool = True) -> Tensor:
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    moved = wide - wide.mean(dims, keepdim=True) if centred else wide
    amount = moved.square().mean(dims, keepdim=True)
    made: Tensor = moved * (amount + plus(amount, eps)).rsqrt()
    return made.to(x.dtype)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _batch_norm(
    plus: Plus,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if not training:  # running statistics absorb nothing
        return None
    dims = [d for d in range(input.dim()) if d != 1]
    shape = [1, -1, *[1] * (input.dim() - 2)]
    return _affine(_normalised(plus, input, dims, eps), weight, bias, shape)


def _instance_norm(
    plus: Plus,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if not use_input_stats:
        return None
    dims, shape = range(2, input.dim()), [1, -1, *[1] * (input.dim() - 2)]
    return _affine(_normalised(plus, input, list(dims), eps), weight, bias, shape)


def _layer_norm(
    plus: Plus,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    dims = list(range(-len(normalized_shape), 0))
    return _affine(_normalised(plus, input, dims, eps), weight, bias, list(normalized_shape))


def _group_norm(
    plus: Plus,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    grouped = input.reshape(len(input), num_groups, -1)
    shape = [1, -1, *[1] * (input.dim() - 2)]
    return _affine(_normalised(plus, grouped, [2], eps).view_as(input), weight, bias, shape)


def _rms_norm(
    plus: Plus,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    dims = list(range(-len(normalized_shape), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(_normalised(plus, input, dims, eps, False), weight, None, normalized_shape)


FORMULAS: dict[Any, Callable[..., Tensor | None]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
}
