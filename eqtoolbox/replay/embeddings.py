"""Embeddings: rows of a table, looked up so that their gradients are dense and differentiate twice.

A sparse gradient saves memory in a long training; a replay differentiates it again, adds and
compares it, and torch has few of these operations for sparse tensors (torch 2.13). Rows that are
longer than `max_norm` are shortened in what is looked up, not in the table.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def dense(function: Callable[..., Tensor], place: int, flag: str) -> Callable[..., Tensor]:
    """The function with its sparse gradient switched off.

    Args:
        function: one of torch's that looks rows up.
        place: of the flag among its arguments, where it can be given without its name.
        flag: the flag's name.

    Example:
        >>> table = torch.eye(3, requires_grad=True)
        >>> rows = dense(F.embedding, 6, "sparse")(torch.tensor([2]), table, sparse=True)
        >>> torch.autograd.grad(rows.sum(), table)[0].layout
        torch.strided
    """

    def look_up(*args: Any, **kwargs: Any) -> Tensor:
        return function(*args[:place], **{**kwargs, flag: False})

    return look_up


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of a table, with the values and the gradient of torch's own function.

    Example:
        >>> table = torch.tensor([[3.0, 4.0]])
        >>> embedding(torch.tensor([0]), table, max_norm=1.0), table
        (tensor([[0.6000, 0.8000]]), tensor([[3., 4.]]))
    """
    table = _shortened(weight, max_norm, norm_type)
    return F.embedding(input, table, padding_idx, None, norm_type, scale_grad_by_freq, False)


def _shortened(weight: Tensor, max_norm: float | None, norm_type: float) -> Tensor:
    """The table as a lookup leaves it, w max_norm / |w| for a longer row; the gradient is that at
    these rows, as torch writes them before it differentiates.
    """
    if max_norm is None:
        return weight
    rows = weight.detach()
    norms = rows.abs().norm(norm_type, -1, keepdim=True)  # which signs leave as they are
    return weight - rows * torch.where(norms > max_norm, 1 - max_norm / (norms + 1e-7), 0.0)


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sums or means of rows, a bag each; torch's own kernel has no second derivative.

    Bags of `mode="max"`, and gradients scaled by frequency, are left to that kernel.

    Example:
        >>> embedding_bag(torch.tensor([[0, 1]]), torch.eye(2), mode="sum")
        tensor([[1., 1.]])
    """
    weight = _shortened(weight, max_norm, norm_type)
    if mode == "max" or scale_grad_by_freq or weight.dim() != 2:
        return F.embedding_bag(
            input, weight, offsets, None, norm_type, scale_grad_by_freq, mode, False,
            per_sample_weights, include_last_offset, padding_idx,
        )  # fmt: skip
    bag, bags = _bags(input, offsets, include_last_offset)
    rows = F.embedding(input.reshape(-1), weight)
    counted = rows.new_ones(len(rows), 1)
    if padding_idx is not None:
        counted = (input.reshape(-1, 1) != padding_idx % len(weight)).to(rows)
    rows = rows * counted
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1, 1)
    total = rows.new_zeros(bags, rows.shape[1]).index_add(0, bag, rows)
    if mode == "sum":
        return total
    return total / rows.new_zeros(bags, 1).index_add(0, bag, counted).clamp(min=1)


def _bags(input: Tensor, offsets: Tensor | None, include_last: bool) -> tuple[Tensor, int]:
    """Which bag each row belongs to, and how many there are."""
    if offsets is None:
        count, size = input.shape
        return torch.arange(count, device=input.device).repeat_interleave(size), count
    starts = offsets[:-1] if include_last else offsets
    places = torch.arange(len(input), device=input.device)
    return torch.searchsorted(starts.contiguous(), places.to(starts), right=True) - 1, len(starts)
