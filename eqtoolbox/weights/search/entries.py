"""Entries: which indices of which parameters the units of a span move."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.weights.search.member import Entry
from eqtoolbox.weights.search.spans import Part, Span, SpanLeg
from eqtoolbox.weights.tracing.blocks import Choice, blocks
from eqtoolbox.weights.tracing.exponents import Carried

Indices = NDArray[np.int64]
LARGEST_PAIR = 32  # entries of an axis whose pairs are written out when units are differences


@dataclass(frozen=True)
class UnitTable:
    """Index `cells[k]` of the kind takes part in unit `units[k]` at `signs[k]`; cells ascending.

    Without any, every index is a unit.
    """

    count: int
    cells: Indices | None = None
    units: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    signs: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def of(self, cells: Indices) -> tuple[Indices | slice, Indices, NDArray[np.float64]]:
        """For every row that takes part: its number among `cells`, the unit and the sign."""
        if self.cells is None:
            return slice(None), cells, np.ones(len(cells))
        first = np.searchsorted(self.cells, cells, "left")
        times = np.searchsorted(self.cells, cells, "right") - first
        rows = np.repeat(np.arange(len(cells)), times)
        ends = np.cumsum(times)
        within = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - times, times)
        chosen = np.repeat(first, times) + within
        return rows, self.units[chosen], self.signs[chosen]


def table(span: Span) -> UnitTable | None:
    """The units of a span; None where there are too many pairs to write out."""
    sizes = [atom.size for atom in span.kind]
    pair = span.pair
    if span.whole and pair is None and len(span.free) == 2 ** len(sizes):
        return UnitTable(math.prod(sizes))
    if span.whole:
        return _indices(span, sizes)
    if pair is not None and sizes[pair[0]] > LARGEST_PAIR:
        return None
    matrix = np.ones((1, 1))
    for n in sizes:  # a unit is an index less the first one
        matrix = np.kron(matrix, np.concatenate([-np.ones((1, n - 1)), np.eye(n - 1)]))
    if pair is not None:
        matrix = _paired(matrix, [n - 1 for n in sizes], pair, span.sign)
    cells, units = np.nonzero(matrix)
    return UnitTable(matrix.shape[1], cells, units, matrix[cells, units])


def _indices(span: Span, sizes: list[int]) -> UnitTable:
    """One unit an index, or a pair of them, but for those that earlier spans cover."""
    grid = np.indices(sizes).reshape(len(sizes), math.prod(sizes))
    signs = np.ones(grid.shape[1])
    if span.pair is not None:
        first, second = grid[span.pair[0]].copy(), grid[span.pair[1]].copy()
        if span.sign < 0:
            signs = np.sign(second - first).astype(float)
        # of a pair {i <= j} the first place holds j, so that {0, j} is what one place alone is
        grid[span.pair[0]], grid[span.pair[1]] = (
            np.maximum(first, second),
            np.minimum(first, second),
        )
    code = ((grid > 0) * (1 << np.arange(len(sizes)))[:, None]).sum(0)
    kept = np.isin(code, [_code(part) for part in span.free]) & (signs != 0)
    cells = np.flatnonzero(kept)
    steps = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    place = (grid * np.array(steps, dtype=np.int64)[:, None]).sum(0)[cells]
    different, units = np.unique(place, return_inverse=True)
    return UnitTable(len(different), cells, units.reshape(-1), signs[cells])


def _code(part: Part) -> int:
    return sum(1 << i for i in part)


def _paired(
    matrix: NDArray[np.float64], sizes: list[int], pair: tuple[int, int], sign: int
) -> NDArray[np.float64]:
    """Columns (i, j) and (j, i) joined, with one sign or with two."""
    grid = np.indices(sizes).reshape(len(sizes), math.prod(sizes))
    turned = grid.copy()
    turned[[*pair]] = grid[[*reversed(pair)]]
    first: Indices = np.flatnonzero(grid[pair[0]] < grid[pair[1]])
    single: Indices = np.flatnonzero(grid[pair[0]] == grid[pair[1]])
    other: Indices = np.ravel_multi_index(tuple(turned[:, first]), tuple(sizes))
    joined = np.take(matrix, first, 1) + sign * np.take(matrix, other, 1)
    return np.concatenate([joined, np.take(matrix, single, 1)], 1) if sign > 0 else joined


def entries(
    span: Span, units: UnitTable, carried: dict[str, Carried], shapes: dict[str, tuple[int, ...]]
) -> Iterator[Entry]:
    """What the units move, an entry for each run of axes and each rate."""
    found: dict[tuple[str, int, int], list[tuple[Indices, Indices, NDArray[np.float64]]]] = {}
    for name, axes, choice, leg in _gathered(span, carried):
        first, last = min(axes), max(axes)
        shape = shapes[name] or (1,)  # a scalar has one entry, along an axis that is taken for it
        positions, cells = _positions(span, carried[name], axes, choice, leg, shape)
        rows, own, signs = units.of(cells)
        found.setdefault((name, first, last - first + 1), []).append(
            (positions[rows], own, signs * leg.rate)
        )
    for (name, axis, across), parts in found.items():
        joined = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        positions, own, rates = joined
        levels = {leg.rate for leg in span.legs if leg.label[0] == name}
        if len(levels) == 1 and units.cells is None:
            yield Entry(name, axis, positions, own, rates, across)
            continue
        for rate in np.unique(rates)[::-1]:
            of = rates == rate
            yield Entry(name, axis, positions[of], own[of], rates[of], across)


def _gathered(
    span: Span, carried: dict[str, Carried]
) -> Iterator[tuple[str, tuple[int, ...], Choice, SpanLeg]]:
    """Legs with the axes that they are written along: where every other block has the same, few."""
    groups: dict[tuple[object, ...], list[SpanLeg]] = defaultdict(list)
    for leg in span.legs:
        name, choice, _ = leg.label
        along = tuple(sorted({axis for axis, _ in leg.slots}))
        own = tuple(choice[a] for a in along)
        groups[name, along, own, leg.slots, leg.rate].append(leg)
    for legs in groups.values():
        name, choice, _ = legs[0].label
        axes = tuple(sorted({axis for axis, _ in legs[0].slots}))
        counts = [len(blocks(d)) for d in carried[name].axes]
        others = [a for a in range(len(counts)) if a not in axes]
        if len(legs) == math.prod(counts[a] for a in others):
            yield name, axes or (0,), choice if axes else (), legs[0]
        else:
            several = tuple(a for a in others if counts[a] > 1)
            for leg in legs:
                yield name, tuple(sorted({*axes, *several})), leg.label[1], leg


def _positions(
    span: Span,
    carried: Carried,
    axes: tuple[int, ...],
    choice: Choice,
    leg: SpanLeg,
    shape: tuple[int, ...],
) -> tuple[Indices, Indices]:
    """Indices along the run of axes, flattened, and the index of the kind that each belongs to."""
    run = range(min(axes), max(axes) + 1)
    sizes = [atom.size for atom in span.kind]
    steps = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    positions, cells = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for axis in run:
        wide = math.prod(shape[a] for a in run if a > axis)
        if axis not in axes or not choice:
            positions = np.add.outer(positions, wide * np.arange(shape[axis])).reshape(-1)
            cells = np.repeat(cells, shape[axis])
            continue
        block = blocks(carried.axes[axis])[choice[axis]]
        positions = positions + wide * block.offset
        for k, stride in enumerate(block.strides):
            numbers = np.arange(stride.size)
            step = steps[leg.slots.index((axis, k))] if (axis, k) in leg.slots else 0
            positions = np.add.outer(positions, wide * stride.step * numbers).reshape(-1)
            cells = np.add.outer(cells, step * numbers).reshape(-1)
    return positions, cells
