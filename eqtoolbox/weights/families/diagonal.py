"""Diagonal symmetries: every unit scales its own slices of some parameters."""

import math
from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor

from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters


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

    def along(self, per_unit: Tensor) -> Tensor:
        """Sum of rate * per_unit at every index of the axis: (1, length, 1)."""
        rates = self.rates.to(per_unit)
        zero = per_unit.new_zeros(self.length)
        units, positions = self.units.to(per_unit.device), self.positions.to(per_unit.device)
        return zero.index_add(0, positions, rates * per_unit[units])[None, :, None]

    def rows(self, tensor: Tensor) -> Tensor:
        """(before, length, after)."""
        return tensor.reshape(self.before, self.length, self.after)

    def sums(self, elementwise: Tensor, units: int, absolute: bool = False) -> Tensor:
        """Sum of rate * entries per unit, (units,), accumulated in float64."""
        rows = self.rows(elementwise)
        rows = rows.sum(dim=(0, 2), dtype=torch.float64)
        rates = self.rates.to(rows)
        parts = (rates.abs() if absolute else rates) * rows[self.positions.to(rows.device)]
        return rows.new_zeros(units).index_add(0, self.units.to(rows.device), parts)


@dataclass(frozen=True, kw_only=True)
class DiagonalSymmetry(ContinuousSymmetry):
    """T_s theta = e^(s A_i) theta, A_i diagonal: K_i = A_i theta and Q_i = theta^T A_i theta / 2.

    For legs with rates r: Q_i = 1/2 sum over legs of r |leg_i|^2.
    """

    separable: ClassVar[bool] = True
    legs: tuple[Leg, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(leg.name for leg in self.legs))

    def transform(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        moved: dict[str, Tensor] = {}
        for leg in self.legs:
            if leg.name not in params:
                continue
            old = moved.get(leg.name, params[leg.name])
            factor = leg.along(coefficients).exp().to(old)
            moved[leg.name] = (leg.rows(old) * factor).reshape(old.shape)
        return moved

    def tangent(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for leg in self.legs:
            if leg.name not in params:
                continue
            own = params[leg.name]
            part = (leg.rows(own) * leg.along(coefficients).to(own)).reshape(own.shape)
            total[leg.name] = total[leg.name] + part if leg.name in total else part
        return total

    def pullback(
        self, params: Parameters, coefficients: Tensor, cotangent: Parameters
    ) -> dict[str, Tensor]:
        return self.tangent(cotangent, coefficients)

    def _form(self, a: Parameters, b: Parameters, absolute: bool = False) -> Tensor:
        """sum over legs of rate <a_i, b_i> per unit."""
        rows = [
            leg.sums(a[leg.name].double() * b[leg.name].double(), self.dimension, absolute)
            for leg in self.legs
        ]
        return torch.stack(rows).sum(0)

    def lengths(self, params: Parameters) -> Tensor:
        """|A_i theta|^2 = sum over legs of r^2 |leg_i|^2, where no two legs move the same entry."""
        if not self._apart():
            return super().lengths(params)
        squared = [replace(leg, rates=leg.rates.square()) for leg in self.legs]
        parts = [leg.sums(params[leg.name].double().square(), self.dimension) for leg in squared]
        return torch.stack(parts).sum(0).sqrt()

    def _apart(self) -> bool:
        """Whether every entry of a parameter is moved by a unit at one rate, in one leg."""
        by_name: dict[str, list[Leg]] = {}
        for leg in self.legs:
            by_name.setdefault(leg.name, []).append(leg)
        for legs in by_name.values():
            pairs = [zip(leg.positions.tolist(), leg.units.tolist(), strict=True) for leg in legs]
            moved = [*chain(*pairs)]
            if len({leg.before for leg in legs}) > 1 or len(set(moved)) < len(moved):
                return False
        return True

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
