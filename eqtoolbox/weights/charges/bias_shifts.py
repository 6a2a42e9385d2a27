"""Bias shifts: the laws of all of them, readers of one shape together."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from eqtoolbox.weights.charges.moments import Moments, Spread
from eqtoolbox.weights.charges.stack import Layout, Pair, Points, Stack
from eqtoolbox.weights.families.bias_shift import BiasShift


class BiasShifts(Moments):
    """Laws of bias shifts, <K_j, g> = (entry j of g_b) - (column j of W)^T g_o; no charges.

    Readers of one shape are evaluated together; a single matrix lies before each (`direct`).
    """

    quadratic = False
    members: Sequence[BiasShift]

    def __init__(self, members: Sequence[BiasShift], layout: Layout) -> None:
        self.members = members
        self._readers: dict[int, dict[int, list[tuple[int, str]]]] = {}  # stack, inner axis
        places: list[tuple[int, int, int, int, int]] = []
        first = 0
        for m in members:
            for r in m.readers:
                (map_,) = r.maps
                number, index = layout.place[map_.name]
                inner = 1 if map_.kind == "rows" else 0
                of = self._readers.setdefault(number, {}).setdefault(inner, [])
                places.append((number, inner, len(of), first, m.dimension))
                of.append((index, r.bias))
            first += m.dimension
        into = torch.cat([torch.arange(at, at + count) for *_, at, count in sorted(places)])
        minus = torch.full((len(into),), -1.0, dtype=torch.float64)
        self._spread = Spread(torch.arange(len(into)), into, minus, first)

    def rows(self, stack: Stack, points: Points, pairs: Sequence[Pair]) -> list[Tensor]:
        """Of the first pair alone: it is slopes that are asked for."""
        (a, b), found = pairs[0], []
        for inner, readers in sorted(self._readers.get(stack.number, {}).items()):
            biases = points.of(b, [bias for _, bias in readers])
            pulls = torch.stack([biases[bias].to(stack.whole) for _, bias in readers])
            chosen = [index for index, _ in readers]
            whole = stack.whole[a]
            weight = whole if chosen == list(range(len(whole))) else whole[chosen]
            weight = weight if inner == 1 else weight.mT
            found.append(torch.bmm(pulls[:, None], weight).reshape(1, -1))
        return found

    def pair(self, moments: Tensor) -> Tensor:
        return moments.new_zeros(len(moments), 0)

    def slopes(self, moments: Tensor, points: Points, pair: Pair) -> Tensor:
        given = points.of(pair[1], [m.source for m in self.members])
        own = [given[m.source][m.offset : m.offset + m.dimension] for m in self.members]
        return torch.cat(own).double() + self._spread.of(moments)[0]

    def lengths(self, moments: Tensor, points: Points) -> Tensor:
        return torch.cat([m.lengths(points.of(0, m.names)) for m in self.members])

    def decay(self, moments: Tensor, points: Points, weights: Mapping[str, float]) -> Tensor:
        return moments.new_zeros(0)
