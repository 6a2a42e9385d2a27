"""Diagonal symmetries: every unit scales its own slices of some parameters."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.symmetry.parameter import Parameters, ParameterSymmetry


@dataclass(frozen=True)
class Leg:
    """One parameter's part: reshaped to (before, units, after), unit i scales by e^(rate s)."""

    name: str
    before: int
    units: int
    after: int
    rate: float

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.before, self.units, self.after

    def spread(self, per_unit: Tensor, like: Tensor) -> Tensor:
        """`per_unit` (units,) broadcast over the parameter's own shape."""
        return per_unit.to(like)[None, :, None].expand(self.shape).reshape(like.shape)

    def sums(self, elementwise: Tensor) -> Tensor:
        """Sum per unit, (units,), accumulated in float64."""
        return elementwise.reshape(self.shape).sum(dim=(0, 2), dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class DiagonalSymmetry(ParameterSymmetry):
    """T_s theta = e^(s A_i) theta, A_i diagonal: K_i = A_i theta and Q_i = theta^T A_i theta / 2.

    For legs with rates r: Q_i = 1/2 sum over legs of r |leg_i|^2.
    """

    legs: tuple[Leg, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(leg.name for leg in self.legs)

    def _each(
        self, tensors: Parameters, coefficients: Tensor, map: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        moved: dict[str, Tensor] = {}
        for leg in self.legs:
            tensor = tensors[leg.name]
            moved[leg.name] = tensor * leg.spread(map(leg.rate * coefficients), tensor)
        return moved

    def transform(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        return self._each(params, coefficients, torch.exp)

    def tangent(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        return self._each(params, coefficients, lambda rates: rates)

    def pullback(self, coefficients: Tensor, cotangent: Parameters) -> dict[str, Tensor]:
        return self._each(cotangent, coefficients, lambda rates: rates)

    def _form(self, a: Parameters, b: Parameters, rate: Callable[[float], float]) -> Tensor:
        """sum over legs of rate(r) <a_i, b_i> per unit."""
        rows = [
            rate(leg.rate) * leg.sums(a[leg.name].double() * b[leg.name].double())
            for leg in self.legs
        ]
        return torch.stack(rows).sum(0)

    def pairing(self, params: Parameters, direction: Parameters) -> Tensor:
        return self._form(params, direction, lambda rate: rate)

    def charge(self, params: Parameters) -> Tensor:
        return 0.5 * self._form(params, params, lambda rate: rate)

    def charge_scale(self, params: Parameters) -> Tensor:
        return 0.5 * self._form(params, params, abs)

    def finite_step(self, direction: Parameters) -> Tensor:
        return self.charge(direction)


def leg(name: str, params: Mapping[str, Tensor], axis: int, units: int, rate: float) -> Leg | None:
    """Leg of `params[name]` along `axis`; an axis of units * block has `block` entries a unit."""
    shape = params[name].shape
    if shape[axis] % units:
        return None
    block = shape[axis] // units
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    return Leg(name, before, units, block * after, rate)
