"""Shifts: the charges of translations, from sums of entries, and the laws of bias shifts."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from eqtoolbox.symmetry.families.bias_shift import BiasShift
from eqtoolbox.symmetry.families.compensation import Compensation
from eqtoolbox.symmetry.families.head import HeadShift
from eqtoolbox.symmetry.families.translation import Shift, Translation
from eqtoolbox.symmetry.moments import Moments, Owners, Spread, each
from eqtoolbox.symmetry.stack import Layout, Pair, Stack

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
        self._sums = list(sums.items())
        starts: dict[tuple[int, Grouped], int] = {}
        owners: list[tuple[str, int]] = []
        added: list[Tensor] = []
        at = 0
        for number, those in self._sums:
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

    def of(self, points: Stack, pairs: Sequence[Pair]) -> Tensor:
        first, last = min(b for _, b in pairs), max(b for _, b in pairs)
        rows = []
        for number, those in self._sums:
            whole = points.whole[number][first : last + 1]
            rows += [_summed(whole, grouped) for grouped in those]
        sums = torch.cat(rows, 1).double()
        return sums[[b - first for _, b in pairs]]

    def pair(self, moments: Tensor) -> Tensor:
        return self._spread.of(moments)

    def slopes(self, moments: Tensor, points: Stack, pair: Pair) -> Tensor:
        return self._spread.of(moments)[0]

    def lengths(self, full: Tensor, points: Stack) -> Tensor:
        added = self._added.to(full.device)
        return self._spread.of(added[None], squared=True)[0].sqrt()

    def decay(self, moments: Tensor, points: Stack, weights: Mapping[str, float]) -> Tensor:
        return self._spread.of(moments * each(weights, self._owners, moments))[0]


class BiasShifts(Moments):
    """Laws of bias shifts, <K_j, g> = (entry j of g_b) - (column j of W)^T g_o; no charges.

    Readers of one shape are evaluated together.
    """

    quadratic = False

    def __init__(self, members: Sequence[BiasShift], layout: Layout) -> None:
        self.members = members
        self._biases: dict[tuple[int, int, int], Tensor] = {}
        where: dict[tuple[int, int, int], int] = {}
        at = 0
        for r in (r for m in members for r in m.readers):
            (weights, _), (biases, _) = layout.place[r.weight], layout.place[r.bias]
            key = weights, r.inner, biases
            shape, names = layout.groups[weights]
            if key not in where:
                where[key] = at
                self._biases[key] = torch.zeros(len(names), dtype=torch.long)
                at += len(names) * shape[r.inner]
            self._biases[key][layout.place[r.weight][1]] = layout.place[r.bias][1]
        rows, into, first = [], [], 0
        sources = []
        for m in members:
            number, index = layout.place[m.source]
            sources.append((number, index, slice(m.offset, m.offset + m.dimension)))
            for r in m.readers:
                weights, index = layout.place[r.weight]
                length = layout.groups[weights][0][r.inner]
                start = where[weights, r.inner, layout.place[r.bias][0]] + index * length
                rows.append(start + torch.arange(length))
                into.append(first + torch.arange(length))
            first += m.dimension
        self._sources = sources
        minus = torch.full((sum(map(len, rows)),), -1.0, dtype=torch.float64)
        self._spread = Spread(torch.cat(rows), torch.cat(into), minus, first)

    def of(self, points: Stack, pairs: Sequence[Pair]) -> Tensor:
        return points.flat.new_zeros(len(pairs), 0, dtype=torch.float64)

    def pair(self, moments: Tensor) -> Tensor:
        return moments

    def slopes(self, moments: Tensor, points: Stack, pair: Pair) -> Tensor:
        a, b = pair
        rows = []
        for (weights, inner, biases), chosen in self._biases.items():
            weight = points.whole[weights][a]
            pulls = points.whole[biases][b][chosen.to(weight.device)][:, None]
            rows.append(torch.bmm(pulls, weight if inner == 1 else weight.mT).reshape(-1))
        own = torch.cat([points.whole[n][b, i, where] for n, i, where in self._sources])
        read = self._spread.of(torch.cat(rows)[None].double())[0]
        return own.double() + read

    def lengths(self, full: Tensor, points: Stack) -> Tensor:
        found = []
        for m in self.members:
            params = points.of(0, m.names)
            squares = [1.0 + params[m.source].new_zeros(m.dimension, dtype=torch.float64)]
            for r in m.readers:
                squares.append(params[r.weight].double().square().sum(1 - r.inner))
            found.append(torch.stack(squares).sum(0).sqrt())
        return torch.cat(found)

    def decay(self, moments: Tensor, points: Stack, weights: Mapping[str, float]) -> Tensor:
        return moments[0]


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
    rows = rows.sum(4) if size > 1 else rows[:, :, :, :, 0]
    return rows.movedim(3, 2).reshape(points, -1)
