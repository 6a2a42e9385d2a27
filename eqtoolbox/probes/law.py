"""The terms of a symmetry's first- and second-order laws at one point, along an element."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.linalg.curvature import Hessian
from eqtoolbox.linalg.vectors import norm, random_like, zeros_like
from eqtoolbox.probes.operators import DifferentiatedOperator
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.replay.thread.scope import unobserved
from eqtoolbox.weights.parameter import ContinuousSymmetry

Members = Mapping[str, Sequence[ContinuousSymmetry]]
Elements = Mapping[str, Sequence[Tensor]]

FAR = 1e-3  # largest relative move between the two points whose rounding is compared


@dataclass(frozen=True, kw_only=True)
class Law:
    """What both laws say along one element of an algebra; c = 0 where outputs stay.

    Numbers only: a vector as long as the parameters for each family would be more than training
    itself holds.
    """

    length: float  # |K|
    slope: float  # g . K - c
    curvature: float  # <K, H K>
    size: float  # |H K| + |(DK)^T g - grad c| at most, of the terms one by one
    defect: float  # |H K + (DK)^T g - grad c|
    left: float  # |H K + (DK)^T g - grad c - grad p|
    predicted: float  # -<K, (DK)^T g - grad c - grad p>, the curvature by the gradient alone
    p: float = 0.0  # what epsilon makes of g . K
    p_slope: float = 0.0  # |grad p|
    matvecs: int = 1  # products that were made for it; 0 where it shares another's

    def total(self, eps: float, scale: float) -> float:
        """What the second-order law is measured in: its terms, and rounding of them.

        Args:
            eps: of the parameters.
            scale: of the curvature.
        """
        return max(self.size + math.sqrt(eps) * scale * self.length, 1e-300)


@dataclass(frozen=True)
class Bias:
    """c of one element of an algebra, and its gradient."""

    value: float
    gradient: Parameters


@dataclass(frozen=True)
class FirstOrder:
    """What is known of the law g . K = 0 at one step: for all that judge it there by one measure.

    What rounding leaves of it over |g| |K|, and the part of the gradient that epsilons make.
    """

    noise: float
    pull: Parameters | None  # q with <K, q> = p, see `eqtoolbox.probes.epsilon`; None: not known


class Laws:
    """Gradient and Hessian of an objective at one point, and the laws there."""

    def __init__(self, params: Parameters, operator: DifferentiatedOperator) -> None:
        self.params = params
        self.operator = operator
        self.gradient = operator.gradient
        self.size = max(norm(self.gradient), 1e-300)

    def release(self) -> None:
        """Free the graph of the gradient, which products need."""
        if isinstance(self.operator, Hessian):
            self.operator.release()

    def terms(
        self, members: Sequence[ContinuousSymmetry], elements: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """K and (DK)^T g of the sum of these elements."""
        return self.tangent(members, elements), self.pulled(members, elements)

    @unobserved()
    def pulled(
        self, members: Sequence[ContinuousSymmetry], elements: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """(DK)^T g of the sum of these elements."""
        pulled = zeros_like(self.params)
        for member, element in zip(members, elements, strict=True):
            coefficients = element.to(self.params[member.names[0]])
            for name, part in member.pullback(self.params, coefficients, self.gradient).items():
                pulled[name].add_(part)
        return pulled

    @unobserved()
    def tangent(
        self, members: Sequence[ContinuousSymmetry], elements: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """K of the sum of these elements."""
        found = zeros_like(self.params)
        for member, element in zip(members, elements, strict=True):
            coefficients = element.to(self.params[member.names[0]])
            for name, part in member.tangent(self.params, coefficients).items():
                found[name].add_(part)
        return found

    def drawn(self, families: Members, rng: torch.Generator) -> dict[str, list[Tensor]]:
        """Gaussian coefficients of every member, scaled so that |K| = 1 for each family.

        Then one product along the sum over all families has at least the rounding of each.
        """
        found = {}
        for family, members in families.items():
            draws = [torch.randn(m.dimension, generator=rng, dtype=torch.float64) for m in members]
            length = norm(self.tangent(members, draws))
            found[family] = [c / length if length > 0 else c for c in draws]
        return found

    def curvature_scale(self) -> float:
        """|H g| / |g|: near the largest curvature once the gradient has aligned with it."""
        return norm(self.operator(self.gradient)) / self.size


@unobserved()
def moved_by(params: Parameters, amount: float, rng: torch.Generator) -> Parameters:
    """Every parameter moved by a random relative `amount`, at least by a rounding of its own."""
    size = {n: max(torch.finfo(p.dtype).eps, amount) for n, p in params.items()}
    return {n: p * (1 + size[n] * random_like({n: p}, rng)[n]) for n, p in params.items()}


def afar(rounding: float) -> float:
    """Relative move after which rounding errors of second derivatives are independent.

    One unit in the last place is too near: saturated probabilities and what depends on the other
    tensors alone are rounded the same way at both points, and that part of the error would be
    missed. The laws of a symmetry hold at every point; a violation changes by this share of
    itself, far below the 10 floors that a verdict asks for.

    Example:
        >>> afar(1e-16), afar(1e-8), afar(0.01)
        (1e-08, 0.0001, 0.01)
    """
    return max(rounding, min(math.sqrt(rounding), FAR))
