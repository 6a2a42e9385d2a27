"""The Lie derivatives of lie-deriv, derived anew from its paper and its documented choices.

Images are warped by bilinear `grid_sample` in coordinates from -1 to 1, and the warp is
differentiated at the identity (Gruver et al. 2022, arXiv 2210.02984).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Warp = Callable[[Tensor, Tensor], Tensor]  # (images, t) -> images


def shifted(x: Tensor, t: Tensor, mode: str = "bilinear") -> Tensor:
    """Images moved right by t pixels."""
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    rows = torch.stack([one, zero, -2 * t / x.shape[-1], zero, one, zero]).reshape(1, 2, 3)
    return _sampled(x, rows, mode)


def stretched(x: Tensor, t: Tensor) -> Tensor:
    """Images stretched sideways by exp(t), with the other entry of the diagonal left at zero."""
    zero = torch.zeros_like(t)
    rows = torch.stack([torch.exp(-t), zero, zero, zero, zero, zero]).reshape(1, 2, 3)
    return _sampled(x, rows, "bilinear")


def rotated(x: Tensor, angle: float) -> Tensor:
    """Images turned about their centre by an angle in radians."""
    c, s = math.cos(angle), math.sin(angle)
    return _sampled(x, torch.tensor([[[c, -s, 0.0], [s, c, 0.0]]]).to(x), "bilinear")


def derivative(function: Callable[[Tensor], Tensor], x: Tensor, warp: Warp) -> Tensor:
    """d/dt f(warp(x, t)) at t = 0, twice backward: grid_sample has no forward mode."""
    t = torch.zeros((), dtype=x.dtype, requires_grad=True)
    output = function(warp(x, t))
    dummy = torch.zeros_like(output, requires_grad=True)
    (slope,) = torch.autograd.grad(output, t, dummy, create_graph=True)
    (change,) = torch.autograd.grad(slope, dummy)
    return change.detach()


def rotation_consistency(function: Callable[[Tensor], Tensor], x: Tensor, eta: float) -> float:
    """Share of images whose class stays under a rotation by eta radians."""
    with torch.no_grad():
        same = function(rotated(x, eta)).argmax(1) == function(x).argmax(1)
    return float(same.float().mean())


def _sampled(x: Tensor, rows: Tensor, mode: str) -> Tensor:
    grid = F.affine_grid(rows.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)
