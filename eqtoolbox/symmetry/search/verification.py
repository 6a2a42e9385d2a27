"""Verification: a proposed parameter symmetry is checked by numbers before it is used."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from eqtoolbox.symmetry.parameter import (
    ContinuousSymmetry,
    DiscreteSymmetry,
    Parameters,
    ParameterSymmetry,
    Status,
)

Loss = Callable[[dict[str, Tensor]], Tensor]
S = TypeVar("S", bound=ParameterSymmetry)


def residuals(
    symmetry: ContinuousSymmetry,
    loss: Loss,
    params: Parameters,
    generator: torch.Generator,
    strength: float = 0.3,
    gradient: Parameters | None = None,
    value: Tensor | None = None,
) -> tuple[float, float]:
    """Residuals of order 0 and 1 of the law along a random element of the algebra.

    order 0: |L(T_c theta) - L(theta)| / |L(theta)| at c and -c, order 1: |g . K_c| / (|g| |K_c|),
    with c = `strength` times standard normal; |g| over the moved parameters.
    """
    coefficients = draw(symmetry, params, generator, strength)
    if gradient is None or value is None:
        value, gradient = value_and_gradient(loss, params)
    with torch.no_grad():
        order_0 = 0.0
        for c in (coefficients, -coefficients):  # a dead unit is flat on one side only
            moved = {**params, **symmetry.transform(params, c)}
            change = float((loss(moved) - value).abs() / value.abs().clamp_min(1e-300))
            order_0 = max(order_0, change if math.isfinite(change) else math.inf)
        tangent = symmetry.tangent(params, coefficients)
        own = {n: gradient[n] for n in tangent}
        scale = _norm(own) * _norm(tangent)
        order_1 = abs(_dot(own, tangent)) / scale if scale > 0 else 0.0
    return order_0, order_1


def equivariance_residuals(
    symmetry: ContinuousSymmetry,
    outputs: Loss,
    params: Parameters,
    generator: torch.Generator,
    strength: float = 0.3,
) -> tuple[float, float]:
    """Residuals of f(T_c theta) = R_c f(theta) and J K_c = rho_c(f).

    order 0 relative to |f|; order 1 as |u . (J K - rho)| / (|J^T u| |K| + |u| |rho|) for a random
    u, exact by one backward pass.
    """
    coefficients = draw(symmetry, params, generator, strength)
    leaves = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    y = outputs(leaves)
    u = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)
    moved = [leaves[n] for n in symmetry.names]
    found = torch.autograd.grad((u * y).sum(), moved, allow_unused=True)
    with torch.no_grad():
        there = outputs({**params, **symmetry.transform(params, coefficients)})
        size = y.norm().clamp_min(1e-300)
        order_0 = float((there - symmetry.transform_outputs(y, coefficients)).norm() / size)
        tangent = symmetry.tangent(params, coefficients)
        pulled = {
            n: torch.zeros_like(params[n]) if g is None else g
            for n, g in zip(symmetry.names, found, strict=True)
        }
        rho = symmetry.rho(y, coefficients)
        scale = _norm(pulled) * _norm(tangent) + float(u.norm() * rho.norm())
        order_1 = abs(_dot(pulled, tangent) - float((u * rho).sum())) / max(scale, 1e-300)
    return order_0, order_1


def draw(
    symmetry: ContinuousSymmetry,
    params: Parameters,
    generator: torch.Generator,
    strength: float,
) -> Tensor:
    """Random coefficients of a symmetry's algebra, in the parameters' type."""
    drawn = torch.randn(symmetry.dimension, generator=generator, dtype=torch.float64)
    return (strength * drawn).to(params[symmetry.names[0]])


def value_and_gradient(loss: Loss, params: Parameters) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradient at `params`; zero where a parameter takes no part."""
    leaves = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    value = loss(leaves)
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    gradient = {
        n: torch.zeros_like(p) if g is None else g
        for (n, p), g in zip(leaves.items(), found, strict=True)
    }
    return value.detach(), gradient


def judged(symmetry: S, worst: float, double: bool) -> S:
    """The symmetry with its `status` for a residual.

    verified: to rounding (1e-9 in float64, 1e-4 in float32); approximate: within the family's
    own tolerance (the epsilon of a normalisation layer); broken: otherwise.
    """
    status: Status = "broken"
    if worst <= (1e-9 if double else 1e-4):
        status = "verified"
    elif worst <= symmetry.tolerance:
        status = "approximate"
    return replace(symmetry, status=status, residual=worst)


def verified(
    symmetry: ContinuousSymmetry,
    loss: Loss,
    params: Parameters,
    generator: torch.Generator,
    draws: int = 2,
    gradient: Parameters | None = None,
    value: Tensor | None = None,
) -> ContinuousSymmetry:
    """The symmetry judged by the worst residual over `draws` random elements."""
    worst = max(
        max(residuals(symmetry, loss, params, generator, symmetry.strength, gradient, value))
        for _ in range(draws)
    )
    return judged(symmetry, worst, params[symmetry.names[0]].dtype == torch.float64)


def verified_discrete(
    symmetry: DiscreteSymmetry,
    loss: Loss,
    params: Parameters,
    gradient: Parameters,
    value: Tensor,
    elements: int = 2,
) -> DiscreteSymmetry:
    """Judged by |L(T theta) - L(theta)| / |L| of all generating elements applied at once.

    T is taken as the product of all generating elements, then of a few of them alone; the first
    also gives order 1, |g(T theta) - T g(theta)| / |g|.
    """
    worst = 0.0
    with torch.no_grad():
        whole = dict(params)
        for which in range(symmetry.dimension):
            whole.update(symmetry.element(whole, which))
        trials = [whole]
        for which in range(0, symmetry.dimension, max(1, symmetry.dimension // elements)):
            trials.append({**params, **symmetry.element(params, which)})
        for trial in trials:
            worst = max(worst, float((loss(trial) - value).abs() / value.abs().clamp_min(1e-300)))
    _, there = value_and_gradient(loss, trials[-1])
    which = range(0, symmetry.dimension, max(1, symmetry.dimension // elements))[-1]
    expected = {**gradient, **symmetry.element(gradient, which)}
    difference = {n: there[n] - expected[n] for n in symmetry.names}
    size = _norm({n: gradient[n] for n in symmetry.names})
    worst = max(worst, _norm(difference) / size if size > 0 else 0.0)
    return judged(symmetry, worst, params[symmetry.names[0]].dtype == torch.float64)


def _dot(a: Parameters, b: Parameters) -> float:
    return float(sum(float((a[n] * b[n]).sum(dtype=torch.float64)) for n in a))


def _norm(a: Parameters) -> float:
    return math.sqrt(_dot(a, a))
