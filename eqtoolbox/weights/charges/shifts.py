"""Shifts: the charges of translations, from sums of entries."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from eqtoolbox.weights.charges.moments import Moments, Owners, Spread, each
from eqtoolbox.weights.charges.stack import Layout, Pair, Points, Stack, pieces
from eqtoolbox.weights.families.compensation import Compensation
from eqtoolbox.weights.families.head import HeadShift
from eqtoolbox.weights.families.translation import Shift, Translation

Shifting = Translation | Compensation | HeadShift
Grouped = tuple[int, int, int, int]  # entries before an axis, its length, entries after it, and
# how many of its indices are summed, one stretch after the other
Entries = tuple[str, Grouped, Tensor, Tensor, float]  # sums taken, charges they go to, sign


class Shifts(Moments):
    """Symmetries that add constants: K is constant and Q linear, a sum of entries."""

    quadratic = False

    def __init__(self, members: Sequence[Shifting], layout: Layout) -> None:
        self.members = members
        every = [(m, list(_entries(m, layout))) for m in members]
        sums: dict[int, list[Grouped]] = {}
        for name, grouped, *_ in (e for _, of in every for e in of):
            those = sums.setdefault(layout.place[name][0], [])
            if grouped not in those:
                those.append(grouped)
        self._sums = dict(sorted(sums.items()))
        starts: dict[tuple[int, Grouped], int] = {}
        owners: list[tuple[str, int]] = []
        added: list[Tensor] = []
        at = 0
        for number, those in self._sums.items():
            shape, names = layout.groups[number]
            for grouped in those:
                starts[number, grouped] = at
                width = shape.numel() // grouped[3]
                owners += [(name, width) for name in names]
                added.append(torch.full((len(names) * width,), float(grouped[3])))
                at += len(names) * width
        self._owners: Owners = owners
        self._added = torch.cat(added).double()
        rows, into, rates, first = [], [], [], 0
        for m, of in every:
            for name, grouped, taken, charges, sign in of:
                number, index = layout.place[name]
                width = layout.groups[number][0].numel() // grouped[3]
                rows.append(taken + starts[number, grouped] + index * width)
                into.append(first + charges)
                rates.append(torch.full((len(taken),), sign, dtype=torch.float64))
            first += m.dimension
        self._spread = Spread(torch.cat(rows), torch.cat(into), torch.cat(rates), first)

    def rows(self, stack: Stack, points: Points, pairs: Sequence[Pair]) -> list[Tensor]:
        those = self._sums.get(stack.number, [])
        first, last = min(b for _, b in pairs), max(b for _, b in pairs)
        return [_summed(stack.whole[first : last + 1], grouped) for grouped in those]

    def gathered(
        self, rows: Sequence[list[Tensor]], points: Points, pairs: Sequence[Pair]
    ) -> Tensor:
        first = min(b for _, b in pairs)
        return pieces(rows)[[b - first for _, b in pairs]]

    def pair(self, moments: Tensor) -> Tensor:
        return self._spread.of(moments)

    def slopes(self, moments: Tensor, points: Points, pair: Pair) -> Tensor:
        return self._spread.of(moments)[0]

    def lengths(self, moments: Tensor, points: Points) -> Tensor:
        added = self._added.to(moments.device)
        return self._spread.of(added[None], squared=True)[0].sqrt()

    def decay(self, moments: Tensor, points: Points, weights: Mapping[str, float]) -> Tensor:
        return self._spread.of(moments * each(weights, self._owners, moments))[0]


def _entries(member: Shifting, layout: Layout) -> Iterator[Entries]:
    """The sums that make the charges of one symmetry."""
    if isinstance(member, HeadShift):
        every = torch.arange(member.dimension)
        yield member.bias, (1, member.dimension, 1, 1), every, every, 1.0
    elif isinstance(member, Compensation):
        moved = member.entries
        for name, sign in ((member.first, 1.0), (member.second, -1.0)):
            shape = layout.groups[layout.place[name][0]][0]
            rows = shape.numel() // shape[-1]
            grouped, every = (1, rows, shape[-1], rows), torch.arange(member.dimension)
            yield name, grouped, moved[: member.dimension], every, sign
            if member.centred:
                yield name, grouped, moved[-1:].expand(member.dimension), every, -sign
    else:
        first = 0
        for shift in member.shifts:
            shape = layout.groups[layout.place[shift.name][0]][0]
            yield _shift(shift, shape, first)
            first += shift.count * shift.width


def _shift(shift: Shift, shape: torch.Size, first: int) -> Entries:
    """Its groups as sums of stretches where they are such, else entry by entry."""
    length, count, width = len(shift.groups), shift.count, shift.width
    before, after = math.prod(shape[: shift.axis]), math.prod(shape[shift.axis + 1 :])
    size = length // count
    stretches = torch.arange(length) // max(size, 1)
    if size * count == length and torch.equal(shift.groups, stretches):
        every = torch.arange(count * width)
        return shift.name, (before, length, after, size), every, first + every, 1.0
    moved = (shift.groups >= 0).nonzero()[:, 0]
    columns = torch.arange(width)
    taken = (moved[:, None] * width + columns).reshape(-1)
    charges = first + (shift.groups[moved][:, None] * width + columns).reshape(-1)
    return shift.name, (before, length, after, 1), taken, charges, 1.0


def _summed(whole: Tensor, grouped: Grouped) -> Tensor:
    """(points, stacked * sums), of each tensor by stretch, then by the entries around the axis."""
    points, count = whole.shape[:2]
    before, length, after, size = grouped
    rows = whole.reshape(points, count, before, length // size, size, after)
    return rows.sum(4).movedim(3, 2).reshape(points, -1)  # a copy even of single entries
