"""Diagonal forms: every unit scales its own slices of some tensors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from eqtoolbox.weights.forms.form import Form, Moments, Spread, summed
from eqtoolbox.weights.forms.held import Slab, StackLayout
from eqtoolbox.weights.forms.meeting import Scaled, scaled
from eqtoolbox.weights.forms.regular import RegularEntries, ScatteredEntries, blocks
from eqtoolbox.weights.forms.stack import Owned, Pair, Parameters, Points, Stack

Axis = tuple[int, int, int]  # entries before it, its length, entries after it


@dataclass(frozen=True, eq=False)
class Leg:
    """One tensor's part along one axis: an index of a block takes e^(rate c[unit])."""

    name: str
    axis: int | None  # None: all of the tensor as one
    before: int  # entries before the axis
    length: int  # of the axis
    after: int  # entries after the axis
    blocks: tuple[RegularEntries | ScatteredEntries, ...]

    @cached_property
    def alike(self) -> bool:
        """Whether all of the tensor scales alike."""
        if len(self.blocks) > 1 or self.axis is None:
            return self.axis is None
        units, rates = self.blocks[0].units(), self.blocks[0].rates()
        every = len(torch.unique(self.blocks[0].positions())) == len(units) == self.length
        return every and bool((units == units[0]).all() and (rates == rates[0]).all())

    @property
    def rates(self) -> Tensor:
        """Of all entries, (entries,) in float64."""
        return torch.cat([block.rates() for block in self.blocks])

    @property
    def positions(self) -> Tensor:
        """Of all entries along the axis, (entries,)."""
        return torch.cat([block.positions() for block in self.blocks])

    @property
    def units(self) -> Tensor:
        """Of all entries, (entries,)."""
        return torch.cat([block.units() for block in self.blocks])

    def along(self, per_unit: Tensor) -> Tensor:
        """Sum of rate * per_unit at every index of the axis: (1, length, 1)."""
        total, device = per_unit.new_zeros(self.length), per_unit.device
        for block in self.blocks:
            parts = block.rates().to(per_unit) * per_unit[block.units(device)]
            total = total.index_add(0, block.positions(device), parts)
        return total[None, :, None]

    def times(self, tensor: Tensor, factor: Tensor, over: bool = False) -> Tensor:
        """A factor (1, length, 1) times the tensor, which may be written over."""
        if over and tensor.is_contiguous():
            tensor.view(self.before, self.length, self.after).mul_(factor.to(tensor))
            return tensor
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
        axes = {(leg.name, leg.axis) for leg in legs}
        crossed = len(axes) > len({leg.name for leg in legs})  # two axes meet in an entry
        return cls(
            legs=legs,
            dimension=dimension,
            power=float(rates.abs().max()) * (2.0 if crossed else 1.0),
            squares=bool((rates == 1).all()),
            balance="norm one" if bool((rates > 0).all()) else "equal sides",
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(leg.name for leg in self.legs))

    @cached_property
    def apart(self) -> bool:
        by_name: dict[str, list[Leg]] = {}
        for leg in self.legs:
            by_name.setdefault(leg.name, []).append(leg)
        for own in by_name.values():
            if len({leg.axis for leg in own}) > 1:
                return False
            moved = torch.cat([leg.positions + leg.length * leg.units for leg in own])
            if len(torch.unique(moved)) < len(moved):
                return False
        return True

    def meetings(self, points: Points) -> Tensor:
        tensors, shards = points.of(0, self.names), points.shards
        parts: dict[str, list[Scaled]] = {}
        for leg in self.legs:
            tensor = tensors[leg.name]
            piece, axis, where = shards.piece(leg.name, tensor), leg.axis, leg.positions
            units, rates, last = leg.units, leg.rates, tensor.dim()
            if axis is None:
                axis, where = 0, torch.arange(piece.whole[0])
                units, rates = units.expand(len(where)), rates.expand(len(where))
                last = 1
            while math.prod(piece.whole[last:]) < leg.after:  # axes from `axis` on may be joined
                last -= 1
            if piece.dim == axis:
                each = math.prod(piece.whole[axis + 1 : last])
                here = (where >= each * piece.start) & (where < each * piece.stop)
                where, units, rates = where[here] - each * piece.start, units[here], rates[here]
            if shards.counts(leg.name):
                cuts = tensor.shape[:axis], tensor.shape[axis:last], tensor.shape[last:]
                before, along, after = map(math.prod, cuts)
                view = before, along, after
                parts.setdefault(leg.name, []).append((view, where, units, rates))
        home = tensors[self.names[0]]
        found = [scaled(of, tensors[name], self.dimension) for name, of in parts.items()]
        none = home.new_zeros(self.dimension, dtype=torch.float64)
        return shards.total(sum(found, none))

    def flow(self, coefficients: Tensor) -> Callable[[Parameters], dict[str, Tensor]]:
        def moved(tensors: Parameters) -> dict[str, Tensor]:
            made: dict[str, Tensor] = {}
            for leg in self.legs:
                if leg.name in tensors:
                    old = made.get(leg.name, tensors[leg.name])
                    over = isinstance(tensors, Owned)
                    made[leg.name] = leg.times(old, leg.along(coefficients).exp(), over)
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

    alike = multiplies = True

    def __init__(self, forms: Sequence[Diagonal], layout: StackLayout) -> None:
        self.forms = forms
        firsts = [0, *accumulate(f.dimension for f in forms)]
        legs = [(first, leg) for f, first in zip(forms, firsts, strict=False) for leg in f.legs]
        axes: dict[int, list[Axis]] = {}
        for _, leg in legs:
            those = axes.setdefault(layout.place[leg.name][0], [])
            axis = leg.before, leg.length, leg.after
            if not leg.alike and axis not in those:
                those.append(axis)
        self._starts, owners, at = dict[int, list[tuple[Axis, int]]](), [], 0
        for number, own in sorted(axes.items()):
            shape, names = layout.groups[number]
            for axis in own or [(1, 1, shape.numel())]:
                self._starts.setdefault(number, []).append((axis, at))
                owners += [(name, axis[1]) for name in names]
                at += len(names) * axis[1]
        self.owners, self.shape = owners, (at,)
        rows, into, rates = [], [], []
        for first, leg in legs:
            number, index = layout.place[leg.name]
            starts = self._starts[number]
            if leg.alike:  # every entry of an axis that is summed anyway
                (_, length, _), start = starts[0]
                positions = torch.arange(length)
                units, each = leg.units[:1].expand(length), leg.rates[:1].expand(length)
            else:
                length, start = leg.length, dict(starts)[leg.before, leg.length, leg.after]
                positions, units, each = leg.positions, leg.units, leg.rates
            rows.append(positions + start + index * length)
            into.append(units + first)
            rates.append(each)
        self._spread = Spread(torch.cat(rows), torch.cat(into), torch.cat(rates), firsts[-1])

    def add(self, stack: Stack, points: Points, pairs: Sequence[Pair], moments: Tensor) -> None:
        for axis, start in self._starts.get(stack.number, ()):
            many, length = stack.piece.shape[0], axis[1]
            own = moments[:, start : start + many * length].view(len(pairs), many, length)
            first, found = _outside(stack.products(pairs), axis, stack.piece)
            own.narrow(2, first, found.shape[2]).add_(found)

    def pair(self, moments: Tensor) -> Tensor:
        return self._spread.of(moments)

    def sizes(self, moments: Tensor) -> Tensor:
        return self._spread.of(moments, magnitude=2)[0].clamp_min(0).sqrt()

    def scales(self, moments: Tensor) -> Tensor:
        return 0.5 * self._spread.of(moments, magnitude=1)[0]


def leg(
    name: str,
    shape: tuple[int, ...],
    axis: int,
    positions: Tensor,
    units: Tensor,
    rates: Tensor,
) -> Leg:
    """Leg along `axis` of a tensor of this shape: index positions[k] at rates[k] of units[k]."""
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    made = blocks(positions, units, rates)
    return Leg(name, axis, before, shape[axis] if shape else 1, after, made)


def whole(name: str, rate: float) -> Leg:
    """Leg of the one unit that scales all of a tensor."""
    one = RegularEntries(sizes=(), first=0, steps=(), unit=0, unit_steps=(), rate=rate)
    return Leg(name, None, 1, 1, -1, (one,))


def _outside(products: Tensor, axis: Axis, slab: Slab) -> tuple[int, Tensor]:
    """Sums over everything but an axis, of the rows there are, and its first index among them.

    Args:
        products: (pairs, tensors, rows, everything else).
        axis: of the tensors; the first one may have others joined to it.
        slab: whose rows they are.

    Returns:
        First index, and (pairs, tensors, indices).
    """
    _, length, after = axis
    if length == 1:
        return 0, products.flatten(2).sum(2, keepdim=True)
    if length * after == math.prod(slab.shape[2:]) * slab.length:
        rows = products.reshape(*products.shape[:2], -1, after)
        first = slab.first * (length // slab.length)
        return first, rows.sum(3) if after > 1 else rows.squeeze(3)
    columns = products.reshape(*products.shape[:2], -1, length * after).sum(2)
    return 0, columns if after == 1 else columns.view(*columns.shape[:2], length, after).sum(3)
