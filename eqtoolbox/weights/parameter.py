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
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
Status = Literal["proposed", "verified", "approximate", "broken"]


@dataclass(frozen=True, kw_only=True)
class ParameterSymmetry(ABC):
    """One symmetry of the loss in parameter space, continuous or discrete.

    `dimension` counts independent generators; of a discrete one, generating elements.
    """

    family: ClassVar[str]
    separable: ClassVar[bool] = False  # every parameter has a map of its own: some may be given
    name: str
    dimension: int
    status: Status = "proposed"
    residual: float = float("nan")  # largest of the residuals of order 0 and 1 at verification
    tolerance: float = 0.0  # residual up to which it counts as approximate, if it can
    epsilon: float = float("nan")  # residual that normalisations' epsilon predicts; NaN: none asked

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Parameters that the group moves."""


@dataclass(frozen=True, kw_only=True)
class ContinuousSymmetry(ParameterSymmetry):
    """A Lie group of transformations, with generators, and charges where they are gradients.

    An equivariance f(T_s theta) = R_s f(theta) moves the outputs too: `rho` is not zero.
    """

    equivariant: ClassVar[bool] = False
    joint: ClassVar[bool] = False  # moves the inputs too: no law of the loss on fixed data
    strength: ClassVar[float] = 0.3  # size of the random element at verification

    @abstractmethod
    def transform(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        """T_c theta for finite c of shape (dimension,); only the moved parameters."""

    def flow(self, coefficients: Tensor) -> Callable[[Parameters], dict[str, Tensor]]:
        """T_c as a map, for several calls with the same c."""
        return lambda params: self.transform(params, coefficients)

    def rho(self, outputs: Tensor, coefficients: Tensor) -> Tensor:
        """rho_c(y) = d/ds R_s y at s = 0, of the outputs' shape; zero for a symmetry."""
        return torch.zeros_like(outputs)

    def transform_outputs(self, outputs: Tensor, coefficients: Tensor) -> Tensor:
        """R_c y for finite c; y itself for a symmetry."""
        return outputs

    def transform_inputs(self, inputs: Tensor, coefficients: Tensor) -> Tensor:
        """S_c x for finite c; x itself unless joint."""
        return inputs

    def tangent_inputs(self, inputs: Tensor, coefficients: Tensor) -> Tensor:
        """d/ds S_s x at s = 0; zero unless joint."""
        return torch.zeros_like(inputs)

    @property
    def charges(self) -> int:
        """How many numbers are conserved: as many as generators unless said."""
        return self.dimension

    @abstractmethod
    def tangent(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        """K_c(theta); only the moved parameters."""

    @abstractmethod
    def pullback(
        self, params: Parameters, coefficients: Tensor, cotangent: Parameters
    ) -> dict[str, Tensor]:
        """(D K_c)^T cotangent; only the moved parameters."""

    def slopes(self, params: Parameters, cotangent: Parameters) -> Tensor:
        """<K_i(theta), cotangent> for every generator i: (dimension,), float64."""
        like = params[self.names[0]]
        with torch.inference_mode(False), torch.enable_grad():
            coefficients = torch.zeros(
                self.dimension, dtype=torch.float64, device=like.device, requires_grad=True
            )
            tangent = self.tangent(params, coefficients)
            parts = [(k.double() * cotangent[n].double()).sum() for n, k in tangent.items()]
            (found,) = torch.autograd.grad(torch.stack(parts).sum(), coefficients)
        return found

    def lengths(self, params: Parameters) -> Tensor:
        """|K_i(theta)| of every generator i: (dimension,), float64."""
        like = params[self.names[0]]
        units = torch.eye(self.dimension, dtype=like.dtype, device=like.device)
        squares = [
            torch.stack([k.double().square().sum() for k in self.tangent(params, u).values()])
            for u in units
        ]
        return torch.stack(squares).sum(1).sqrt()

    @abstractmethod
    def pairing(self, params: Parameters, direction: Parameters) -> Tensor:
        """<grad Q_i(theta), direction> for every charge i: (charges,), float64."""

    @abstractmethod
    def charge(self, params: Parameters) -> Tensor:
        """Q_i(theta) with K_i = grad Q_i, constant under gradient flow: (charges,), float64."""

    @abstractmethod
    def charge_scale(self, params: Parameters) -> Tensor:
        """Upper bound of |Q_i| at this size of parameters: (charges,), float64."""

    @abstractmethod
    def finite_step(self, direction: Parameters) -> Tensor:
        """Q_i(theta + d) - Q_i(theta) - <grad Q_i, d>, the same for all theta: (charges,)."""


@dataclass(frozen=True, kw_only=True)
class DiscreteSymmetry(ParameterSymmetry):
    """A group of single linear maps of the parameters, generated by `dimension` elements.

    Each generating element T is orthogonal and its own inverse, so that T^T g(T theta) = g(theta)
    and, at a fixed point, H T = T H.
    """

    @abstractmethod
    def element(self, params: Parameters, which: int) -> dict[str, Tensor]:
        """T theta for generating element `which`; only moved parameters among those given."""

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Callable[[Parameters], dict[str, Tensor]]:
        """A random element of the group as a map of (some) parameters; orthogonal."""

    def distance(self, params: Parameters) -> Tensor:
        """Order parameter |theta - P theta| of each element, P the projection onto its fixed set.

        P = (1 + T) / 2, so that it is |theta - T theta| / 2: (dimension,), float64.
        """
        found = torch.zeros(self.dimension, dtype=torch.float64)
        for which in range(self.dimension):
            moved = self.element(params, which)
            found[which] = 0.5 * _norm({n: params[n] - t for n, t in moved.items()})
        return found


def _norm(a: Parameters) -> float:
    return math.sqrt(sum(float(x.double().square().sum()) for x in a.values()))
