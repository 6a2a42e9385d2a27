"""Diagonals: the charges of diagonal symmetries, from products summed along axes."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from eqtoolbox.weights.charges.moments import Moments, Owners, Spread, each
from eqtoolbox.weights.charges.stack import Layout, Pair, Points, Stack
from eqtoolbox.weights.families.diagonal import DiagonalSymmetry
from eqtoolbox.weights.families.homogeneity import Homogeneity

Axis = tuple[int, int, int]  # entries before it, its length, entries after it
Part = tuple[str, Axis | None, Tensor, Tensor, Tensor]  # positions, units, rates along the axis
WHOLE: list[Axis | None] = [None]
LONG = 2**16  # entries up to which a float32 dot product is as good as a sum


class Diagonals(Moments):
    """Products of two points summed over everything but one axis of a parameter, or over all."""

    def __init__(self, members: Sequence[DiagonalSymmetry | Homogeneity], layout: Layout) -> None:
        self.members = members
        self._layout = layout
        parts = [(m, part) for m in members for part in _parts(m, layout)]
        axes: dict[int, list[Axis]] = {}
        for _, (name, axis, *_) in parts:
            those = axes.setdefault(layout.place[name][0], [])
            if axis is not None and axis not in those:
                those.append(axis)
        self._axes = dict(sorted(axes.items()))
        starts, self._owners = self._plan()
        first = dict(zip(map(id, members), _starts(m.dimension for m in members), strict=True))
        rows, into, rates = [], [], []
        for m, (name, axis, positions, units, each_rate) in parts:
            number, index = layout.place[name]
            own = axis if axis is not None else next(iter(axes[number]), None)
            length = 1 if own is None else own[1]
            if axis is None:  # the whole tensor: every entry of the axis that is summed anyway
                positions = torch.arange(length)
                units, each_rate = units.expand(length), each_rate.expand(length)
            rows.append(positions + starts[number, own] + index * length)
            into.append(units + first[id(m)])
            rates.append(each_rate)
        count = sum(m.dimension for m in members)
        self._spread = Spread(torch.cat(rows), torch.cat(into), torch.cat(rates), count)

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
        entries = stack.scratch[0].numel()
        if not axes and entries <= LONG:
            return [_dots(stack.whole, pairs)]
        sums: list[list[Tensor]] = [[] for _ in axes or WHOLE]
        for pair in pairs:
            product = stack.product(pair)
            for into, axis in zip(sums, axes or [(1, 1, entries)], strict=True):
                into.append(_outside(product, axis))
        return [torch.stack(of) for of in sums]

    def pair(self, moments: Tensor) -> Tensor:
        return self._spread.of(moments)

    def slopes(self, moments: Tensor, points: Points, pair: Pair) -> Tensor:
        return self._spread.of(moments)[0]

    def lengths(self, moments: Tensor, points: Points) -> Tensor:
        return self._spread.of(moments, squared=True)[0].clamp_min(0).sqrt()

    def decay(self, moments: Tensor, points: Points, weights: Mapping[str, float]) -> Tensor:
        return self._spread.of(moments * each(weights, self._owners, moments))[0]


def _parts(member: DiagonalSymmetry | Homogeneity, layout: Layout) -> Iterator[Part]:
    """What each parameter takes part with; no axis where all of a tensor scales alike."""
    none = torch.zeros(1, dtype=torch.long)
    if isinstance(member, Homogeneity):
        for name, rate in member.rates:
            yield name, None, none, none, torch.tensor([rate], dtype=torch.float64)
        return
    for leg in member.legs:
        every = len(leg.positions) == leg.length and len(set(leg.positions.tolist())) == leg.length
        alike = bool((leg.units == leg.units[0]).all() and (leg.rates == leg.rates[0]).all())
        if every and alike:
            yield leg.name, None, none, leg.units[:1], leg.rates[:1]
        else:
            axis = (leg.before, leg.length, leg.after)
            yield leg.name, axis, leg.positions, leg.units, leg.rates


def _starts(sizes: Iterator[int]) -> list[int]:
    """Where each of several stretches begins."""
    return [0, *accumulate(sizes)][:-1]


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
