"""A parameter symmetry: a group acting on parameters that is claimed to leave the loss unchanged.

A family of `dimension` commuting one-parameter groups T_s, one per unit, with generators
K_i(theta) = d/ds T_s(theta) at s = 0. For coefficients c, K_c = sum_i c_i K_i. The laws
(Yang & Ziyin 2025, arXiv 2512.21447), with g the gradient and H the Hessian of the loss:

    order 0   L(T_c theta) = L(theta)
    order 1   g . K_c = 0
    order 2   H K_c + (D K_c)^T g = 0,   along the orbit K_c^T H K_c = -g^T (D K_c) K_c
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
Status = Literal["proposed", "verified", "approximate", "broken"]


@dataclass(frozen=True, kw_only=True)
class ParameterSymmetry(ABC):
    """One symmetry of the loss in parameter space."""

    family: ClassVar[str]
    tolerance: ClassVar[float] = 0.0  # residual up to which it counts as approximate, if it can
    name: str
    dimension: int
    status: Status = "proposed"
    residual: float = float("nan")  # largest of the residuals of order 0 and 1 at verification

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Parameters that the group moves."""

    @abstractmethod
    def transform(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        """T_c theta for finite c of shape (dimension,); only the moved parameters."""

    @abstractmethod
    def tangent(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        """K_c(theta); only the moved parameters."""

    @abstractmethod
    def pullback(self, coefficients: Tensor, cotangent: Parameters) -> dict[str, Tensor]:
        """(D K_c)^T cotangent; only the moved parameters."""

    @abstractmethod
    def pairing(self, params: Parameters, direction: Parameters) -> Tensor:
        """<K_i(theta), direction> for every unit i: (dimension,), float64."""

    @abstractmethod
    def charge(self, params: Parameters) -> Tensor:
        """Q_i(theta) with K_i = grad Q_i, constant under gradient flow: (dimension,), float64."""

    @abstractmethod
    def charge_scale(self, params: Parameters) -> Tensor:
        """Upper bound of |Q_i| at this size of parameters: (dimension,), float64."""

    @abstractmethod
    def finite_step(self, direction: Parameters) -> Tensor:
        """Q_i(theta + d) - Q_i(theta) - <K_i(theta), d>, the same for all theta: (dimension,)."""


def residuals(
    symmetry: ParameterSymmetry,
    loss: Callable[[dict[str, Tensor]], Tensor],
    params: Parameters,
    generator: torch.Generator,
    strength: float = 0.3,
) -> tuple[float, float]:
    """Residuals of order 0 and 1 of the law along a random element of the algebra.

    order 0: |L(T_c theta) - L(theta)| / |L(theta)|, order 1: |g . K_c| / (|g| |K_c|), with
    c = `strength` times standard normal; |g| over the moved parameters.
    """
    draw = torch.randn(symmetry.dimension, generator=generator, dtype=torch.float64)
    some = params[symmetry.names[0]]
    coefficients = (strength * draw).to(some)
    leaves = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    value = loss(leaves)
    moved_leaves = [leaves[n] for n in symmetry.names]
    found = torch.autograd.grad(value, moved_leaves, allow_unused=True)
    gradient = {
        n: torch.zeros_like(p) if g is None else g
        for n, p, g in zip(symmetry.names, moved_leaves, found, strict=True)
    }
    with torch.no_grad():
        moved = {**leaves, **symmetry.transform(leaves, coefficients)}
        order_0 = float((loss(moved) - value).abs() / value.abs().clamp_min(1e-300))
        tangent = symmetry.tangent(leaves, coefficients)
        scale = _norm(gradient) * _norm(tangent)
        order_1 = abs(_dot(gradient, tangent)) / scale if scale > 0 else 0.0
    return order_0, order_1


def verified(
    symmetry: ParameterSymmetry,
    loss: Callable[[dict[str, Tensor]], Tensor],
    params: Parameters,
    generator: torch.Generator,
    draws: int = 2,
) -> ParameterSymmetry:
    """The symmetry with its `status` and `residual`, the worst over `draws` random elements.

    verified: to rounding (1e-9 in float64, 1e-4 in float32); approximate: within the family's
    own tolerance (the epsilon of a normalisation layer); broken: otherwise.
    """
    worst = max(max(residuals(symmetry, loss, params, generator)) for _ in range(draws))
    double = params[symmetry.names[0]].dtype == torch.float64
    status: Status = "broken"
    if worst <= (1e-9 if double else 1e-4):
        status = "verified"
    elif worst <= symmetry.tolerance:
        status = "approximate"
    return replace(symmetry, status=status, residual=worst)


def _dot(a: Parameters, b: Parameters) -> float:
    return float(sum(float((a[n] * b[n]).sum(dtype=torch.float64)) for n in a))


def _norm(a: Parameters) -> float:
    return math.sqrt(_dot(a, a))
