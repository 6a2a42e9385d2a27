"""Approach: the reflections of a network whose fixed points are nearest.

Distances are relative: |u_i - u_j| / sqrt(|u_i|^2 + |u_j|^2) for the exchange of units i and j, u
all that a unit owns (0 equal, about 1 unrelated, sqrt(2) opposite), and |u_i| over the root mean
square of its layer for the sign flip of unit i (0 at its fixed point, the zero unit).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from eqtoolbox.weights.families.discrete import Permutation, Permuting, SignFlip
from eqtoolbox.weights.orbit import units
from eqtoolbox.weights.orbit.reflection import Reflection
from eqtoolbox.weights.parameter import DiscreteSymmetry, Parameters

GRAM = 1e-7  # relative distances that Gram matrices in float64 resolve


@dataclass(frozen=True, kw_only=True)
class Approach:
    """A reflection and the relative distance to its nearest fixed point."""

    distance: float
    label: str  # which units it is about, for a reader
    build: Callable[[], Reflection] = field(repr=False)
    pair: bool = False  # two units becoming equal, not one becoming zero

    @cached_property
    def reflection(self) -> Reflection:
        """The reflection, made when it is asked for: its indices may be many."""
        return self.build()


def approaches(
    symmetry: DiscreteSymmetry, params: Parameters, count: int, limit: float
) -> tuple[list[Approach], int]:
    """The `count` nearest of all pairs (of all flips), nearest first, and how many are in `limit`.

    Raises:
        TypeError: neither a permutation nor a sign flip.
    """
    if isinstance(symmetry, Permuting):
        return _pairs(symmetry, params, count, limit)
    if isinstance(symmetry, SignFlip):
        return _flips(symmetry, params, count, limit)
    raise TypeError(f"expected a Permutation or SignFlip, got {type(symmetry).__name__}")


def _pairs(
    symmetry: Permuting, params: Parameters, count: int, limit: float
) -> tuple[list[Approach], int]:
    limit = max(limit, GRAM) ** 2
    chosen = _near(units.coarse_gaps(symmetry, params), count, limit)
    if len(chosen) == 0:  # all are zero
        return [], 0
    gap = units.gaps(symmetry, params, chosen).cpu()
    i, j = torch.triu_indices(len(gap), len(gap), 1)
    flat = gap[i, j].nan_to_num(nan=torch.inf)  # two zero units are for `dead` to name
    order = flat.topk(min(count, int(flat.isfinite().sum())), largest=False)
    pairs, found = chosen[torch.stack([i, j], 1)[order.indices]], []
    for pair, distance in zip(pairs, units.apart(symmetry, params, pairs), strict=True):
        one, two = pair.tolist()
        label = " ".join(filter(None, (symmetry.name, symmetry.word, f"{one} and {two}")))
        build = partial(_exchange, symmetry, params, pair, label)
        found.append(Approach(distance=distance, label=label, build=build, pair=True))
    return found, int((flat <= limit).sum())


def _near(coarse: tuple[Tensor, float], count: int, limit: float) -> Tensor:
    """The units among which the nearest pairs and all within `limit` are, ascending."""
    gap, error = coarse
    nearest = gap.amin(1)  # of each unit: the kth nearest pair is no farther than the kth of these
    least = nearest.topk(min(count, len(nearest)), largest=False).values
    least = least[least.isfinite()]
    farthest = max(float(least.max()) if len(least) else 0.0, limit) + 2 * error
    near = gap <= farthest
    return (near.any(0) | near.any(1)).nonzero().flatten().cpu()


def _exchange(symmetry: Permuting, params: Parameters, pair: Tensor, label: str) -> Reflection:
    move = partial(symmetry.exchange, first=pair[:1], second=pair[1:])
    if isinstance(symmetry, Permutation):
        moves = symmetry.moves(params, symmetry.exchanged(pair[:1], pair[1:]))
        return Reflection.along(move, moves, params, label)
    return Reflection.of(move, params, symmetry.names, label)


def _flips(
    symmetry: SignFlip, params: Parameters, count: int, limit: float
) -> tuple[list[Approach], int]:
    sizes = units.sizes(symmetry, params)
    mean = math.sqrt(float(sizes.mean()))
    if mean == 0:
        return [], 0
    order = sizes.topk(min(count, len(sizes)), largest=False)
    found = []
    lengths = units.lengths(symmetry, params, order.indices)
    for unit, length in zip(order.indices[:, None], lengths, strict=True):
        label = f"{symmetry.name} unit {int(unit)}"
        build = partial(_flip, symmetry, params, unit, label)
        found.append(Approach(distance=length / mean, label=label, build=build))
    return found, int((sizes.sqrt() <= limit * mean).sum())


def _flip(symmetry: SignFlip, params: Parameters, unit: Tensor, label: str) -> Reflection:
    move = partial(symmetry.flipped, units=unit)
    return Reflection.along(move, symmetry.moves(params, unit), params, label)
