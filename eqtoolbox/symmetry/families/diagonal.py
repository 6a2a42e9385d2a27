"""Diagonal symmetries: every unit scales its own slices of some parameters."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.symmetry.parameter import ContinuousSymmetry, Parameters


@dataclass(frozen=True, eq=False)
class Leg:
    """One parameter's part along one axis: index positions[k] times e^(rates[k] c[units[k]])."""

    name: str
    before: int  # entries before the axis
    length: int  # of the axis
    after: int  # entries after the axis
    positions: Tensor  # (entries,)
    units: Tensor  # (entries,)
    rates: Tensor  # (entries,), float64

    def spread(self, per_unit: Tensor, like: Tensor) -> Tensor:
        """Sum of rate * per_unit at every index, broadcast over the parameter's own shape."""
        rates = self.rates.to(per_unit)
        along = per_unit.new_zeros(self.length)
        along = along.index_add(
            0, self.positions.to(per_unit.device), rates * per_unit[self.units.to(per_unit.device)]
        )
        whole = along.to(like)[None, :, None].expand(self.before, self.length, self.after)
        return whole.reshape(like.shape)

    def sums(self, elementwise: Tensor, units: int, absolute: bool = False) -> Tensor:
        """Sum of rate * entries per unit, (units,), accumulated in float64."""
        rows = elementwise.reshape(self.before, self.length, self.after)
        rows = rows.sum(dim=(0, 2), dtype=torch.float64)
        rates = self.rates.to(rows)
        parts = (rates.abs() if absolute else rates) * rows[self.positions.to(rows.device)]
        return rows.new_zeros(units).index_add(0, self.units.to(rows.device), parts)


@dataclass(frozen=True, kw_only=True)
class DiagonalSymmetry(ContinuousSymmetry):
    """T_s theta = e^(s A_i) theta, A_i diagonal: K_i = A_i theta and Q_i = theta^T A_i theta / 2.

    For legs with rates r: Q_i = 1/2 sum over legs of r |leg_i|^2.
    """

    legs: tuple[Leg, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(leg.name for leg in self.legs))

    def _each(
        self, tensors: Parameters, coefficients: Tensor, map: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for leg in self.legs:
            exponent = leg.spread(coefficients, tensors[leg.name])
            total[leg.name] = total[leg.name] + exponent if leg.name in total else exponent
        return {name: tensors[name] * map(exponent) for name, exponent in total.items()}

    def transform(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        return self._each(params, coefficients, torch.exp)

    def tangent(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        return self._each(params, coefficients, lambda rates: rates)

    def pullback(self, coefficients: Tensor, cotangent: Parameters) -> dict[str, Tensor]:
        return self._each(cotangent, coefficients, lambda rates: rates)

    def _form(self, a: Parameters, b: Parameters, absolute: bool = False) -> Tensor:
        """sum over legs of rate <a_i, b_i> per unit."""
        rows = [
            leg.sums(a[leg.name].double() * b[leg.name].double(), self.dimension, absolute)
            for leg in self.legs
        ]
        return torch.stack(rows).sum(0)

    def pairing(self, params: Parameters, direction: Parameters) -> Tensor:
        return self._form(params, direction)

    def charge(self, params: Parameters) -> Tensor:
        return 0.5 * self._form(params, params)

    def charge_scale(self, params: Parameters) -> Tensor:
        return 0.5 * self._form(params, params, absolute=True)

    def finite_step(self, direction: Parameters) -> Tensor:
        return self.charge(direction)


def leg(
    name: str,
    shape: tuple[int, ...],
    axis: int,
    positions: Tensor,
    units: Tensor,
    rates: Tensor,
) -> Leg:
    """Leg along `axis` of a parameter of this shape."""
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    return Leg(name, before, shape[axis] if shape else 1, after, positions, units, rates)
