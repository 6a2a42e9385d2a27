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
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from eqtoolbox.weights.forms.form import Form
from eqtoolbox.weights.forms.stack import Parameters as Parameters

MOVED = "moved"  # the one tensor of a form that acts on outputs or inputs
# inert: no gradient was seen of what moves, so that its law holds without evidence
Status = Literal["proposed", "verified", "approximate", "broken", "inert"]


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

    @property
    def buffers(self) -> tuple[str, ...]:
        """Running statistics that have to move along, or the loss does not stay."""
        return ()


@dataclass(frozen=True, kw_only=True)
class ContinuousSymmetry(ParameterSymmetry):
    """A Lie group of transformations, with generators, and charges where they are gradients.

    A family states its `form`, from which everything follows. An equivariance f(T_s theta) =
    R_s f(theta) moves the outputs too and states `output`; what moves the inputs, `input`.
    """

    separable: ClassVar[bool] = True
    strength: ClassVar[float] = 0.3  # size of the random element at verification

    @property
    @abstractmethod
    def form(self) -> Form:
        """How parameters move."""

    @property
    def output(self) -> Form | None:
        """How the model's outputs move along, a tensor called `MOVED`; None: not at all."""
        return None

    @property
    def input(self) -> Form | None:
        """How the model's inputs move along, a tensor called `MOVED`; None: not at all."""
        return None

    @property
    def equivariant(self) -> bool:
        """Whether more than parameters move: no law of the loss on fixed data."""
        return self.output is not None or self.joint

    @property
    def joint(self) -> bool:
        """Whether the inputs move."""
        return self.input is not None

    @property
    def names(self) -> tuple[str, ...]:
        return self.form.names

    def transform(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        """T_c theta for finite c of shape (dimension,); only the moved parameters."""
        return self.form.flow(coefficients)(params)

    def flow(self, coefficients: Tensor) -> Callable[[Parameters], dict[str, Tensor]]:
        """T_c as a map, for several calls with the same c."""
        return self.form.flow(coefficients)

    def rho(self, outputs: Tensor, coefficients: Tensor) -> Tensor:
        """rho_c(y) = d/ds R_s y at s = 0, of the outputs' shape; zero for a symmetry."""
        return _along(self.output, outputs, coefficients)

    def transform_outputs(self, outputs: Tensor, coefficients: Tensor) -> Tensor:
        """R_c y for finite c; y itself for a symmetry."""
        return _moved(self.output, outputs, coefficients)

    def transform_inputs(self, inputs: Tensor, coefficients: Tensor) -> Tensor:
        """S_c x for finite c; x itself where inputs stay."""
        return _moved(self.input, inputs, coefficients)

    def tangent_inputs(self, inputs: Tensor, coefficients: Tensor) -> Tensor:
        """d/ds S_s x at s = 0; zero where inputs stay."""
        return _along(self.input, inputs, coefficients)

    @property
    def charges(self) -> int:
        """How many numbers are conserved."""
        return self.form.charges

    def tangent(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        """K_c(theta); only the moved parameters."""
        return self.form.tangent(params, coefficients)

    def pullback(
        self, params: Parameters, coefficients: Tensor, cotangent: Parameters
    ) -> dict[str, Tensor]:
        """(D K_c)^T cotangent; only the moved parameters."""
        return self.form.pullback(params, coefficients, cotangent)

    def slopes(self, params: Parameters, cotangent: Parameters) -> Tensor:
        """<K_i(theta), cotangent> for every generator i: (dimension,), float64."""
        return self.form.alone(params, cotangent).slopes

    def lengths(self, params: Parameters) -> Tensor:
        """|K_i(theta)| of every generator i: (dimension,), float64."""
        return self.form.alone(params).lengths

    def pairing(self, params: Parameters, direction: Parameters) -> Tensor:
        """<grad Q_i(theta), direction> for every charge i: (charges,), float64."""
        return self.form.alone(params, direction).pairing

    def charge(self, params: Parameters) -> Tensor:
        """Q_i(theta) with K_i = grad Q_i, constant under gradient flow: (charges,), float64."""
        return self.form.alone(params).charge

    def charge_scale(self, params: Parameters) -> Tensor:
        """Upper bound of |Q_i| at this size of parameters: (charges,), float64."""
        return self.form.alone(params).scale

    def finite_step(self, direction: Parameters) -> Tensor:
        """Q_i(theta + d) - Q_i(theta) - <grad Q_i, d>, the same for all theta: (charges,)."""
        charge = self.charge(direction)
        return charge if self.form.quadratic else torch.zeros_like(charge)


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


def _moved(form: Form | None, tensor: Tensor, coefficients: Tensor) -> Tensor:
    return tensor if form is None else form.flow(coefficients)({MOVED: tensor})[MOVED]


def _along(form: Form | None, tensor: Tensor, coefficients: Tensor) -> Tensor:
    if form is None:
        return torch.zeros_like(tensor)
    return form.tangent({MOVED: tensor}, coefficients)[MOVED]


def _norm(a: Parameters) -> float:
    return math.sqrt(sum(float(x.double().square().sum()) for x in a.values()))
