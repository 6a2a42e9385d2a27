"""Equivariances of the last linear layer: its output scaled, shifted or rotated."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eqtoolbox.weights.families.general_linear import MatrixSymmetry
from eqtoolbox.weights.families.homogeneity import Homogeneity
from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters


@dataclass(frozen=True, kw_only=True)
class HeadScale(Homogeneity):
    """W_L, b_L -> e^s W_L, e^s b_L: f -> e^s f, rho = y; Q = |W_L|^2 / 2 moves by dQ/dt = -c."""

    family: ClassVar[str] = "head_scale"
    strength: ClassVar[float] = 0.3


@dataclass(frozen=True, kw_only=True)
class HeadShift(ContinuousSymmetry):
    """b_L -> b_L + s e_c: f -> f + s e_c, rho = e_c; Q_c = b_c."""

    family: ClassVar[str] = "head_shift"
    equivariant: ClassVar[bool] = True
    separable: ClassVar[bool] = True
    bias: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.bias,)

    def transform(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        return {n: params[n] + coefficients.to(params[n]) for n in self.names if n in params}

    def tangent(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        return {n: coefficients.to(params[n]) for n in self.names if n in params}

    def slopes(self, params: Parameters, cotangent: Parameters) -> Tensor:
        return self.pairing(params, cotangent)

    def lengths(self, params: Parameters) -> Tensor:
        return torch.ones_like(params[self.bias], dtype=torch.float64)

    def pullback(
        self, params: Parameters, coefficients: Tensor, cotangent: Parameters
    ) -> dict[str, Tensor]:
        return {self.bias: torch.zeros_like(cotangent[self.bias])}

    def rho(self, outputs: Tensor, coefficients: Tensor) -> Tensor:
        return coefficients.to(outputs).expand(outputs.shape)

    def transform_outputs(self, outputs: Tensor, coefficients: Tensor) -> Tensor:
        return outputs + coefficients.to(outputs)

    def pairing(self, params: Parameters, direction: Parameters) -> Tensor:
        return direction[self.bias].double()

    def charge(self, params: Parameters) -> Tensor:
        return params[self.bias].double()

    def charge_scale(self, params: Parameters) -> Tensor:
        return params[self.bias].double().abs()

    def finite_step(self, direction: Parameters) -> Tensor:
        return torch.zeros_like(direction[self.bias], dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class HeadRotation(MatrixSymmetry):
    """W_L, b_L -> e^B W_L, e^B b_L, B antisymmetric: f -> e^B f, rho = B y; nothing conserved."""

    family: ClassVar[str] = "head_rotation"
    equivariant: ClassVar[bool] = True

    def matrices(self, coefficients: Tensor) -> Tensor:
        i, j = torch.triu_indices(self.size, self.size, 1, device=coefficients.device)
        upper = coefficients.new_zeros(self.size, self.size).index_put((i, j), coefficients)
        return (upper - upper.mT)[None]

    @property
    def charges(self) -> int:
        return 0

    def lengths(self, params: Parameters) -> Tensor:
        """Generator ij puts row j in the place of row i and minus row i in that of row j."""
        gram = torch.stack([g for _, g in self._grams(params, params)]).sum(0)[0]
        i, j = torch.triu_indices(self.size, self.size, 1, device=gram.device)
        squares = gram.diagonal()
        return (squares[i] + squares[j]).sqrt()

    def slopes(self, params: Parameters, cotangent: Parameters) -> Tensor:
        cross = torch.stack([g for _, g in self._grams(params, cotangent)]).sum(0)[0]
        i, j = torch.triu_indices(self.size, self.size, 1, device=cross.device)
        return cross[j, i] - cross[i, j]

    def rho(self, outputs: Tensor, coefficients: Tensor) -> Tensor:
        return outputs @ self.matrices(coefficients)[0].mT.to(outputs)

    def transform_outputs(self, outputs: Tensor, coefficients: Tensor) -> Tensor:
        return outputs @ torch.matrix_exp(self.matrices(coefficients)[0]).mT.to(outputs)

    def pairing(self, params: Parameters, direction: Parameters) -> Tensor:
        return params[self.names[0]].new_zeros(0, dtype=torch.float64)

    def charge(self, params: Parameters) -> Tensor:
        return self.pairing(params, params)

    def charge_scale(self, params: Parameters) -> Tensor:
        return self.pairing(params, params)

    def finite_step(self, direction: Parameters) -> Tensor:
        return self.pairing(direction, direction)
