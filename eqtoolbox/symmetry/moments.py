"""Moments: sums over tensors from which the charges of one kind of symmetry follow linearly.

Every charge is quadratic or linear in the parameters, so that a few sums per stack of tensors (of
products along an axis, of rows with rows, of entries) give the charges of all units together.
Products are made in the tensors' own precision; what adds up over steps is kept in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from eqtoolbox.symmetry.families.diagonal import DiagonalSymmetry, Leg
from eqtoolbox.symmetry.families.translation import Shift, Translation
from eqtoolbox.symmetry.parameter import ContinuousSymmetry, Parameters
from eqtoolbox.symmetry.stack import Layout, Stack


class Moments(ABC):
    """The charges of symmetries of one kind, in the order of the symmetries.

    With B the bilinear form of a charge: Q = B(theta, theta) / 2 where `quadratic`, else
    Q = B(theta), and <grad Q, d> = B(theta, d) or B(d).
    """

    quadratic = True
    members: Sequence[ContinuousSymmetry]

    @abstractmethod
    def of(self, a: Stack, b: Stack, exact: bool = False) -> Tensor:
        """Moments of a with b, of b alone if linear, in memory that the next call writes over.

        `exact` makes the products in float64.
        """

    @abstractmethod
    def pair(self, moments: Tensor) -> Tensor:
        """<grad Q_i(a), b> from the moments of a with b: (charges,), float64."""

    @abstractmethod
    def slopes(self, moments: Tensor, a: Stack, b: Stack) -> Tensor:
        """<K_i(a), b> of every generator: (dimension,), float64; `moments` those of a with b."""

    @abstractmethod
    def lengths(self, moments: Tensor, params: Parameters) -> Tensor:
        """|K_i| of every generator: (dimension,), float64."""

    @abstractmethod
    def decay(self, moments: Tensor, params: Stack, weights: Mapping[str, float]) -> Tensor:
        """<grad Q_i(theta), w theta>, w a weight of each parameter: (charges,).

        Args:
            moments: of theta with itself.
            params: theta.
            weights: w by name.
        """

    def charge(self, moments: Tensor) -> Tensor:
        """Q_i from the moments of theta with itself: (charges,), float64."""
        return self.pair(moments) / (2 if self.quadratic else 1)


class Diagonals(Moments):
    """Diagonal symmetries: products summed over everything but one axis of a parameter."""

    def __init__(self, members: Sequence[DiagonalSymmetry], layout: Layout) -> None:
        self.members = members
        every = [(m, leg) for m in members for leg in m.legs]
        axes: dict[int, dict[tuple[int, int, int], int]] = {}
        self._owners: list[tuple[str, int]] = []
        at = 0
        for _, leg in every:
            number, axis = layout.place[leg.name][0], (leg.before, leg.length, leg.after)
            if axis not in axes.setdefault(number, {}):
                axes[number][axis] = -1
        for number, those in axes.items():
            for axis in those:
                those[axis] = at
                names = layout.groups[number][1]
                self._owners += [(name, axis[1]) for name in names]
                at += len(names) * axis[1]
        self._axes = [(number, list(those)) for number, those in axes.items()]

        def row(leg: Leg) -> int:
            number, index = layout.place[leg.name]
            axis = (leg.before, leg.length, leg.after)
            return axes[number][axis] + index * axis[1]

        starts = dict(zip(map(id, members), _starts(m.dimension for m in members), strict=True))
        self._rows = torch.cat([leg.positions + row(leg) for _, leg in every])
        self._units = torch.cat([leg.units + starts[id(m)] for m, leg in every])
        self._rates = torch.cat([leg.rates for _, leg in every])
        self._count = sum(m.dimension for m in members)
        self._products: dict[int, Tensor] = {}

    def of(self, a: Stack, b: Stack, exact: bool = False) -> Tensor:
        rows = []
        for number, axes in self._axes:
            x, y = a.whole[number], b.whole[number]
            product = x.double() * y.double() if exact else self._product(number, x, y)
            rows += [_outside(product, *axis) for axis in axes]
        return torch.cat(rows).double()

    def pair(self, moments: Tensor) -> Tensor:
        return self._spread(moments, self._rates)

    def slopes(self, moments: Tensor, a: Stack, b: Stack) -> Tensor:
        return self.pair(moments)

    def lengths(self, moments: Tensor, params: Parameters) -> Tensor:
        return self._spread(moments, self._rates.square()).clamp_min(0).sqrt()

    def decay(self, moments: Tensor, params: Stack, weights: Mapping[str, float]) -> Tensor:
        return self.pair(moments * _each(weights, self._owners, moments))

    def _product(self, number: int, x: Tensor, y: Tensor) -> Tensor:
        """x * y in memory kept for it: fresh pages would take longer than the product."""
        kept = self._products.get(number)
        if kept is None or kept.device != x.device:
            kept = self._products[number] = torch.empty_like(x)
        return torch.mul(x, y, out=kept)

    def _spread(self, moments: Tensor, rates: Tensor) -> Tensor:
        device = moments.device
        self._rows, self._units = self._rows.to(device), self._units.to(device)
        self._rates = self._rates.to(device)
        parts = moments[self._rows].mul_(rates.to(device))
        return moments.new_zeros(self._count).index_add_(0, self._units, parts)


class Shifts(Moments):
    """Translations: sums of entries; K is constant and Q linear."""

    quadratic = False

    def __init__(self, members: Sequence[Translation], layout: Layout) -> None:
        self.members = members
        self._shifts = [s for m in members for s in m.shifts]
        self._layout = layout
        together: dict[tuple[int, int], list[int]] = {}
        for i, shift in enumerate(self._shifts):
            if shift.count == 1 and bool((shift.groups == 0).all()):
                key = layout.place[shift.name][0], shift.axis
                together.setdefault(key, []).append(i)
        self._together = list(together.items())
        self._alone = {
            i: _sum(s)
            for i, s in enumerate(self._shifts)
            if not any(i in those for those in together.values())
        }

    def of(self, a: Stack, b: Stack, exact: bool = False) -> Tensor:
        found: dict[int, Tensor] = {}
        for (number, axis), those in self._together:
            whole = b.whole[number]
            rows = whole.sum(axis + 1, dtype=torch.float64 if exact else None)
            rows = rows.reshape(len(whole), -1)
            for i in those:
                found[i] = rows[self._layout.place[self._shifts[i].name][1]]
        for i, sum_ in self._alone.items():
            name = self._shifts[i].name
            found[i] = sum_(b.of([name])[name])
        return torch.cat([found[i] for i in range(len(self._shifts))]).double()

    def pair(self, moments: Tensor) -> Tensor:
        return moments

    def slopes(self, moments: Tensor, a: Stack, b: Stack) -> Tensor:
        return moments

    def lengths(self, moments: Tensor, params: Parameters) -> Tensor:
        return torch.cat([m.lengths(params) for m in self.members])

    def decay(self, moments: Tensor, params: Stack, weights: Mapping[str, float]) -> Tensor:
        owners = [(s.name, s.count * s.width) for s in self._shifts]
        return moments * _each(weights, owners, moments)


class Singles(Moments):
    """Symmetries of any other kind, one by one through their own methods.

    Their moments are what the charges pair to.
    """

    def __init__(self, members: Sequence[ContinuousSymmetry], quadratic: bool) -> None:
        self.members, self.quadratic = members, quadratic
        self._names = tuple(dict.fromkeys(n for m in members for n in m.names))

    def of(self, a: Stack, b: Stack, exact: bool = False) -> Tensor:
        return self._paired(a.of(self._names), b.of(self._names))

    def pair(self, moments: Tensor) -> Tensor:
        return moments

    def slopes(self, moments: Tensor, a: Stack, b: Stack) -> Tensor:
        x, y = a.of(self._names), b.of(self._names)
        return torch.cat([m.slopes(x, y) for m in self.members])

    def lengths(self, moments: Tensor, params: Parameters) -> Tensor:
        return torch.cat([m.lengths(params) for m in self.members])

    def decay(self, moments: Tensor, params: Stack, weights: Mapping[str, float]) -> Tensor:
        own = params.of(self._names)
        return self._paired(own, {n: weights[n] * p for n, p in own.items()})

    def _paired(self, a: Parameters, b: Parameters) -> Tensor:
        return torch.cat([m.pairing(a, b) for m in self.members])


def _starts(sizes: Iterable[int]) -> list[int]:
    """Where each of several stretches begins."""
    return [0, *accumulate(sizes)][:-1]


def _each(weights: Mapping[str, float], owners: Sequence[tuple[str, int]], like: Tensor) -> Tensor:
    """The weight of the parameter that each moment belongs to."""
    each = torch.tensor([weights.get(name, 0.0) for name, _ in owners], dtype=like.dtype)
    return each.repeat_interleave(torch.tensor([count for _, count in owners])).to(like.device)


def _outside(product: Tensor, before: int, length: int, after: int) -> Tensor:
    """Sums over everything but the axis, of every tensor of a stack: (stacked * length,)."""
    count = len(product)
    if before == 1:
        return product.reshape(count * length, after).sum(1)
    if after == 1:
        return product.reshape(count, before, length).sum(1).reshape(-1)
    return product.reshape(count, before, length, after).sum((1, 3)).reshape(-1)


def _sum(shift: Shift) -> Callable[[Tensor], Tensor]:
    """The sums per group and column of a shift: of single entries without summing."""
    chosen = (shift.groups >= 0).nonzero()[:, 0]
    if shift.width == 1 and torch.equal(shift.groups[chosen], torch.arange(shift.count)):
        return lambda t: t.reshape(-1)[chosen.to(t.device)]
    return shift.sums
