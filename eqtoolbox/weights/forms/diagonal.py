"""Diagonal forms: every unit scales its own slices of some tensors."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain

import torch
from torch import Tensor

from eqtoolbox.weights.forms.form import Form, Moments, Owners, Spread, each, summed
from eqtoolbox.weights.forms.stack import Pair, Parameters, Points, Stack, StackLayout

Axis = tuple[int, int, int]  # entries before it, its length, entries after it
Part = tuple[str, Axis | None, Tensor, Tensor, Tensor]  # positions, units, rates along the axis
WHOLE: list[Axis | None] = [None]
LONG = 2**16  # entries up to which a float32 dot product is as good as a sum


@dataclass(frozen=True, eq=False)
class Leg:
    """One tensor's part along one axis: index positions[k] times e^(rates[k] c[units[k]])."""

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

    def times(self, tensor: Tensor, factor: Tensor) -> Tensor:
        """A factor (1, length, 1) times the tensor."""
        rows = tensor.reshape(self.before, self.length, self.after)
        return (rows * factor.to(tensor)).reshape(tensor.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagonal(Form):
    """T_s theta = e^(s A_i) theta, A_i diagonal: K_i = A_i theta and Q_i = theta^T A_i theta / 2.

    For legs with rates r: Q_i = 1/2 sum over legs of r |leg_i|^2.
    """

    legs: tuple[Leg, ...]

    @classmethod
    def of(cls, legs: tuple[Leg, ...], dimension: int) -> "Diagonal":
        """The form of these legs."""
        rates = torch.cat([leg.rates for leg in legs])
        axes = {(leg.name, leg.before, leg.length) for leg in legs}
        crossed = len(axes) > len({leg.name for leg in legs})  # two axes meet in an entry
        return cls(
            legs=legs,
            dimension=dimension,
            power=float(rates.abs().max()) * (2.0 if crossed else 1.0),
            squares=bool((rates == 1).all()),
            balance="norm one" if bool((rates > 0).all()) else "equal sides",
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(leg.name for leg in self.legs))

    @cached_property
    def apart(self) -> bool:
        by_name: dict[str, list[Leg]] = {}
        for leg in self.legs:
            by_name.setdefault(leg.name, []).append(leg)
        for own in by_name.values():
            pairs = [zip(leg.positions.tolist(), leg.units.tolist(), strict=True) for leg in own]
            moved = [*chain(*pairs)]
            if len({leg.before for leg in own}) > 1 or len(set(moved)) < len(moved):
                return False
        return True

    def flow(self, coefficients: Tensor) -> Callable[[Parameters], dict[str, Tensor]]:
        def moved(tensors: Parameters) -> dict[str, Tensor]:
            made: dict[str, Tensor] = {}
            for leg in self.legs:
                if leg.name in tensors:
                    old = made.get(leg.name, tensors[leg.name])
                    made[leg.name] = leg.times(old, leg.along(coefficients).exp())
            return made

        return moved

    def tangent(self, tensors: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        given = [leg for leg in self.legs if leg.name in tensors]
        return summed((g.name, g.times(tensors[g.name], g.along(coefficients))) for g in given)

    def pullback(
        self, tensors: Parameters, coefficients: Tensor, cotangent: Parameters
    ) -> dict[str, Tensor]:
        return self.tangent(cotangent, coefficients)

    @classmethod
    def together(cls, forms: Sequence["Diagonal"], layout: StackLayout) -> "Diagonals":
        return Diagonals(forms, layout)


class Diagonals(Moments):
    """Products of two points summed over everything but one axis of a tensor, or over all."""

    alike = True

    def __init__(self, forms: Sequence[Diagonal], layout: StackLayout) -> None:
        self.forms = forms
        self._layout = layout
        firsts = [0, *accumulate(f.dimension for f in forms)]
        parts = [
            (first, _part(leg)) for f, first in zip(forms, firsts, strict=False) for leg in f.legs
        ]
        axes: dict[int, list[Axis]] = {}
        for _, (name, axis, *_) in parts:
            those = axes.setdefault(layout.place[name][0], [])
            if axis is not None and axis not in those:
                those.append(axis)
        self._axes = dict(sorted(axes.items()))
        starts, self._owners = self._plan()
        rows, into, rates = [], [], []
        for first, (name, axis, positions, units, each_rate) in parts:
            number, index = layout.place[name]
            own = axis if axis is not None else next(iter(axes[number]), None)
            length = 1 if own is None else own[1]
            if axis is None:  # the whole tensor: every entry of the axis that is summed anyway
                positions = torch.arange(length)
                units, each_rate = units.expand(length), each_rate.expand(length)
            rows.append(positions + starts[number, own] + index * length)
            into.append(units + first)
            rates.append(each_rate)
        self._spread = Spread(torch.cat(rows), torch.cat(into), torch.cat(rates), firsts[-1])

    def _plan(self) -> tuple[dict[tuple[int, Axis | None], int], Owners]:
        """Where the sums of each axis of each stack begin, and whose they are."""
        starts: dict[tuple[int, Axis | None], int] = {}
        owners: list[tuple[str, int]] = []
        at = 0
        for number, axes in self._axes.items():
            names = self._layout.groups[number][1]
            for axis in axes or WHOLE:
                starts[number, axis] = at
                length = 1 if axis is None else axis[1]
                owners += [(name, length) for name in names]
                at += len(names) * length
        return starts, owners

    def rows(self, stack: Stack, points: Points, pairs: Sequence[Pair]) -> list[Tensor]:
        axes = self._axes.get(stack.number)
        if axes is None:
            return []
        if not axes and stack.entries <= LONG:
            return [_dots(stack.whole, pairs)]
        sums: list[list[Tensor]] = [[] for _ in axes or WHOLE]
        for pair in pairs:
            product = stack.product(pair)
            for into, axis in zip(sums, axes or [(1, 1, stack.entries)], strict=True):
                into.append(_outside(product, axis))
        return [torch.stack(of) for of in sums]

    def pair(self, moments: Tensor) -> Tensor:
        return self._spread.of(moments)

    def sizes(self, moments: Tensor, points: Points) -> Tensor:
        return self._spread.of(moments, magnitude=2)[0].clamp_min(0).sqrt()

    def scales(self, moments: Tensor, points: Points) -> Tensor:
        return 0.5 * self._spread.of(moments, magnitude=1)[0]

    def decay(self, moments: Tensor, weights: Mapping[str, float]) -> Tensor:
        return self._spread.of(moments * each(weights, self._owners, moments))[0]


def leg(
    name: str,
    shape: tuple[int, ...],
    axis: int,
    positions: Tensor,
    units: Tensor,
    rates: Tensor,
) -> Leg:
    """Leg along `axis` of a tensor of this shape."""
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    return Leg(name, before, shape[axis] if shape else 1, after, positions, units, rates)


def whole(name: str, rate: float) -> Leg:
    """Leg of the one unit that scales all of a tensor."""
    none = torch.zeros(1, dtype=torch.long)
    return Leg(name, 1, 1, -1, none, none, torch.tensor([rate], dtype=torch.float64))


def _part(leg: Leg) -> Part:
    """What a leg takes part with; no axis where all of a tensor scales alike."""
    every = len(leg.positions) == leg.length and len(set(leg.positions.tolist())) == leg.length
    alike = bool((leg.units == leg.units[0]).all() and (leg.rates == leg.rates[0]).all())
    if every and alike:
        return leg.name, None, torch.zeros(1, dtype=torch.long), leg.units[:1], leg.rates[:1]
    return leg.name, (leg.before, leg.length, leg.after), leg.positions, leg.units, leg.rates


def _outside(product: Tensor, axis: Axis) -> Tensor:
    """Sums over everything but the axis, of every tensor of a stack: (stacked * length,)."""
    count = len(product)
    before, length, after = axis
    if before > 1:
        product = product.reshape(count, before, length * after).sum(1)
    rows = product.reshape(count * length, after)
    return rows.sum(1) if after > 1 or before == 1 else rows[:, 0]


def _dots(whole: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """Inner products of whole tensors, without a product in between: (pairs, stacked)."""
    flat = [list(point) for point in whole.flatten(2)]
    dots = [torch.dot(x, y) for a, b in pairs for x, y in zip(flat[a], flat[b], strict=True)]
    return torch.stack(dots).view(len(pairs), -1)
