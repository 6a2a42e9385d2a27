"""Blocks: entries of an axis that lie as regularly as the units that they belong to."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST = 16  # blocks of one leg; what takes more is held index by index

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RegularEntries:
    """Indices first + sum_k i_k steps[k] of an axis, i_k < sizes[k]; likewise their units.

    Example:
        >>> (columns,) = blocks(torch.arange(6), torch.tensor([0, 0, 1, 1, 2, 2]), torch.ones(6))
        >>> columns.sizes, columns.steps, columns.unit_steps
        ((3, 2), (2, 1), (1, 0))
    """

    sizes: tuple[int, ...]
    first: int
    steps: tuple[int, ...]
    unit: int  # of the first
    unit_steps: tuple[int, ...]
    rate: float

    def positions(self, device: torch.device | None = None) -> Tensor:
        """Along the axis, (entries,)."""
        return self._indices(self.first, self.steps, device)

    def units(self, device: torch.device | None = None) -> Tensor:
        """One an entry, (entries,)."""
        return self._indices(self.unit, self.unit_steps, device)

    def rates(self) -> Tensor:
        """One an entry, (entries,) in float64."""
        return torch.full((math.prod(self.sizes),), self.rate, dtype=torch.float64)

    def _indices(self, first: int, steps: tuple[int, ...], device: torch.device | None) -> Tensor:
        made = torch.full((), first, device=device)
        for size, step in zip(self.sizes, steps, strict=True):
            made = made[..., None] + step * torch.arange(size, device=device)
        return made.reshape(-1)


@dataclass(frozen=True, eq=False)
class ScatteredEntries:
    """Entries without an order of their own, index by index: (entries,) each."""

    _positions: Tensor
    _units: Tensor
    _rates: Tensor

    def positions(self, device: torch.device | None = None) -> Tensor:
        """Along the axis."""
        return self._positions.to(device)

    def units(self, device: torch.device | None = None) -> Tensor:
        """One an entry."""
        return self._units.to(device)

    def rates(self) -> Tensor:
        """One an entry, float64."""
        return self._rates


def blocks(
    positions: Tensor, units: Tensor, rates: Tensor
) -> tuple[RegularEntries | ScatteredEntries, ...]:
    """The blocks that entries of an axis are made of; a single heap where there are too many.

    Args:
        positions, units, rates: (entries,) each.
    """
    p, u, r = (x.numpy() for x in (positions, units, rates))
    found: list[RegularEntries] = []
    for rate in np.unique(r) if len(r) else ():
        chosen = (r == rate).nonzero()[0]
        order = chosen[np.lexsort((u[chosen], p[chosen]))]
        for block in _regular(p[order], u[order], float(rate)):
            found.append(block)
            if len(found) > MOST:
                return (ScatteredEntries(positions, units, rates.double()),)
    return tuple(found)


def shared(indices: Tensor) -> Tensor:
    """The same indices; where they are 0, 1, 2, ... in memory that all such have in common.

    Example:
        >>> shared(torch.tensor([[0, 1], [2, 3]])).data_ptr() == shared(torch.arange(4)).data_ptr()
        True
    """
    counted = _counted(indices.numel())
    return counted.view(indices.shape) if torch.equal(indices.flatten(), counted) else indices


@lru_cache(maxsize=64)
def _counted(length: int) -> Tensor:
    return torch.arange(length)


def _regular(p: Indices, u: Indices, rate: float) -> Iterator[RegularEntries]:
    """Blocks of ascending positions, each as long as it goes."""
    while len(p):
        sizes, steps, unit_steps = [], [], []
        starts, of = p, u
        while len(starts) > 1:
            size = min(_run(starts), _run(of))
            rows, own = (x[: len(x) // size * size].reshape(-1, size) for x in (starts, of))
            alike = (rows - rows[:, :1] == rows[0] - rows[0, 0]).all(1)
            alike &= (own - own[:, :1] == own[0] - own[0, 0]).all(1)
            many = len(alike) if alike.all() else int(alike.argmin())
            sizes.append(size)
            steps.append(int(rows[0, 1] - rows[0, 0]))
            unit_steps.append(int(own[0, 1] - own[0, 0]))
            starts, of = rows[:many, 0], own[:many, 0]
        yield RegularEntries(
            sizes=tuple(sizes[::-1]),
            first=int(p[0]),
            steps=tuple(steps[::-1]),
            unit=int(u[0]),
            unit_steps=tuple(unit_steps[::-1]),
            rate=rate,
        )
        p, u = p[math.prod(sizes) :], u[math.prod(sizes) :]


def _run(x: Indices) -> int:
    """How many of the first ones are evenly spaced; at least two."""
    even = np.diff(x) == x[1] - x[0]
    return len(x) if even.all() else int(even.argmin()) + 1
