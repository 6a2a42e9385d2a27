"""Homogeneity: all parameters scaled, each at its own rate, scales the output."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters


@dataclass(frozen=True, kw_only=True)
class Homogeneity(ContinuousSymmetry):
    """theta_n -> e^(r_n s) theta_n: f -> e^(k s) f, rho = k y (Euler: J K = k f).

    ReLU network without biases: all rates 1 and k the number of layers. With biases
    (quasi-homogeneity): weights at rate 1, the bias of layer l at rate l. Q = sum of
    r_n |theta_n|^2 / 2 moves by dQ/dt = -k <dl/dy, y>, the same for every layer.

    References:
        Lyu & Li 2020 (arXiv 1906.05890); Kunin et al. 2023 (arXiv 2210.03820).
    """

    family: ClassVar[str] = "homogeneity"
    equivariant: ClassVar[bool] = True
    separable: ClassVar[bool] = True
    strength: ClassVar[float] = 0.1
    rates: tuple[tuple[str, float], ...]
    degree: float = 1.0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.rates)

    def transform(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        s = coefficients[0]
        given = [(n, r) for n, r in self.rates if n in params]
        return {n: params[n] * (r * s).exp().to(params[n]) for n, r in given}

    def tangent(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        s = coefficients[0]
        given = [(n, r) for n, r in self.rates if n in params]
        return {n: params[n] * (r * s).to(params[n]) for n, r in given}

    def pullback(
        self, params: Parameters, coefficients: Tensor, cotangent: Parameters
    ) -> dict[str, Tensor]:
        return self.tangent(cotangent, coefficients)

    def rho(self, outputs: Tensor, coefficients: Tensor) -> Tensor:
        return (self.degree * coefficients[0]).to(outputs) * outputs

    def transform_outputs(self, outputs: Tensor, coefficients: Tensor) -> Tensor:
        return (self.degree * coefficients[0]).exp().to(outputs) * outputs

    def lengths(self, params: Parameters) -> Tensor:
        squares = [r**2 * params[n].double().square().sum() for n, r in self.rates]
        return torch.stack(squares).sum().sqrt().reshape(1)

    def pairing(self, params: Parameters, direction: Parameters) -> Tensor:
        terms = [r * (params[n].double() * direction[n].double()).sum() for n, r in self.rates]
        return torch.stack(terms).sum().reshape(1)

    def charge(self, params: Parameters) -> Tensor:
        return 0.5 * self.pairing(params, params)

    def charge_scale(self, params: Parameters) -> Tensor:
        return self.charge(params)

    def finite_step(self, direction: Parameters) -> Tensor:
        return self.charge(direction)
