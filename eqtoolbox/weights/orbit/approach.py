"""Approach: the reflections of a network whose fixed points are nearest.

Distances are relative: |u_i - u_j| / sqrt(|u_i|^2 + |u_j|^2) for the exchange of units i and j, u
all that a unit owns (0 equal, about 1 unrelated, sqrt(2) opposite), and |u_i| over the root mean
square of its layer for the sign flip of unit i (0 at its fixed point, the zero unit).
"""

import math
from dataclasses import dataclass
from functools import partial

import torch

from eqtoolbox.weights.families.discrete import Permuting, SignFlip
from eqtoolbox.weights.orbit import units
from eqtoolbox.weights.orbit.reflection import Reflection
from eqtoolbox.weights.parameter import DiscreteSymmetry, Parameters

GRAM = 1e-7  # relative distances that Gram matrices in float64 resolve


@dataclass(frozen=True, kw_only=True)
class Approach:
    """A reflection and the relative distance to its nearest fixed point."""

    distance: float
    reflection: Reflection
    pair: bool = False  # two units becoming equal, not one becoming zero


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
    gap = units.gaps(symmetry, params)
    i, j = torch.triu_indices(len(gap), len(gap), 1)
    flat = gap[i, j].nan_to_num(nan=torch.inf)  # two zero units are for `dead` to name
    order = flat.topk(min(count, int(flat.isfinite().sum())), largest=False)
    sizes = torch.stack([s.cpu() for s in units.squares(symmetry, params).values()]).sum(0)
    found = []
    for k in order.indices.tolist():
        one, two = i[k : k + 1], j[k : k + 1]
        reflection = Reflection.of(
            partial(symmetry.exchange, first=one, second=two),
            params,
            symmetry.names,
            " ".join(filter(None, (symmetry.name, symmetry.word, f"{int(one)} and {int(two)}"))),
        )
        scale = math.sqrt(float(sizes[one] + sizes[two]) / 2)
        distance = _order(reflection, params) / scale
        found.append(Approach(distance=distance, reflection=reflection, pair=True))
    inside = int((flat <= max(limit, GRAM) ** 2).sum())
    return found, inside


def _flips(
    symmetry: SignFlip, params: Parameters, count: int, limit: float
) -> tuple[list[Approach], int]:
    sizes = torch.stack([s.cpu() for s in units.squares(symmetry, params).values()]).sum(0)
    mean = math.sqrt(float(sizes.mean()))
    if mean == 0:
        return [], 0
    order = sizes.topk(min(count, len(sizes)), largest=False)
    found = []
    for k in order.indices:
        unit = k[None]
        reflection = Reflection.of(
            partial(symmetry.flipped, units=unit),
            params,
            symmetry.names,
            f"{symmetry.name} unit {int(k)}",
        )
        found.append(Approach(distance=_order(reflection, params) / mean, reflection=reflection))
    return found, int((sizes.sqrt() <= limit * mean).sum())


def _order(reflection: Reflection, params: Parameters) -> float:
    """|theta - P theta|."""
    parts = reflection.coordinates(params).values()
    return math.sqrt(sum(float(x.double().square().sum()) for x in parts))
