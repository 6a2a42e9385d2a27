"""Moments: sums over tensors from which the charges of one kind of symmetry follow linearly.

Every charge is quadratic or linear in the parameters, so that a few sums per stack of tensors (of
products along an axis, of rows with rows, of entries) give the charges of all units together.
Products are made in the stack's own precision; what adds up over steps is kept in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from eqtoolbox.weights.charges.stack import Pair, Points, Stack, pieces
from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters

Owners = Sequence[tuple[str, int]]  # which parameter the next so many moments belong to


class Moments(ABC):
    """The charges of symmetries of one kind, in the order of the symmetries.

    With B the bilinear form of a charge: Q = B(theta, theta) / 2 where `quadratic`, else
    Q = B(theta), and <grad Q, d> = B(theta, d) or B(d).
    """

    quadratic = True
    members: Sequence[ContinuousSymmetry]

    @abstractmethod
    def rows(self, stack: Stack, points: Points, pairs: Sequence[Pair]) -> list[Tensor]:
        """What one stack gives to the moments of every pair of points: (pairs, ...) each.

        Args:
            stack: filled with `points`; its memory is written over by the next one.
            points: everything.
            pairs: of points.
        """

    def gathered(
        self, rows: Sequence[list[Tensor]], points: Points, pairs: Sequence[Pair]
    ) -> Tensor:
        """Moments of a with b for every pair (a, b), of b alone if linear: (pairs, ...), float64.

        Args:
            rows: of all stacks, in their order.
            points: that the stacks were filled with.
            pairs: of them.
        """
        return pieces(rows)

    @abstractmethod
    def pair(self, moments: Tensor) -> Tensor:
        """<grad Q_i(a), b> from the moments of a with b: (pairs, charges), float64."""

    @abstractmethod
    def slopes(self, moments: Tensor, points: Points, pair: Pair) -> Tensor:
        """<K_i(a), b> of every generator: (dimension,), float64; `moments` those of a with b."""

    @abstractmethod
    def lengths(self, moments: Tensor, points: Points) -> Tensor:
        """|K_i| at point 0 of every generator: (dimension,), float64."""

    @abstractmethod
    def decay(self, moments: Tensor, points: Points, weights: Mapping[str, float]) -> Tensor:
        """<grad Q_i(theta), w theta>, w a weight of each parameter: (charges,).

        Args:
            moments: of theta with itself.
            points: with theta as point 0.
            weights: w by name.
        """

    def scales(self, moments: Tensor, points: Points) -> Tensor:
        """What |Q| of every charge could be at parameters of point 0's size: (charges,)."""
        return torch.cat([m.charge_scale(points.of(0, m.names)) for m in self.members])

    @property
    def units(self) -> Tensor:
        """Which unit each charge belongs to: (charges,); every charge is one unless said."""
        return torch.arange(self.charges)

    def charge(self, moments: Tensor) -> Tensor:
        """Q_i from the moments of theta with itself: (pairs, charges), float64."""
        return self.pair(moments) / (2 if self.quadratic else 1)

    @property
    def counts(self) -> list[int]:
        """How many charges each symmetry has."""
        return [m.charges for m in self.members]

    @property
    def orders(self) -> list[int]:
        """How many generators each symmetry has."""
        return [m.dimension for m in self.members]

    @property
    def charges(self) -> int:
        """How many charges there are."""
        return sum(self.counts)


class Spread:
    """A sparse matrix: entry `into[k]` of the result takes rates[k] times entry `rows[k]`."""

    def __init__(self, rows: Tensor, into: Tensor, rates: Tensor, count: int) -> None:
        self._rows, self._into, self._rates, self._count = rows, into, rates, count
        self._offsets: dict[int, Tensor] = {}  # of the results of several vectors, one behind other

    def of(self, vectors: Tensor, squared: bool = False) -> Tensor:
        """(vectors, entries) to (vectors, count), float64; with squared rates if said."""
        many, device = len(vectors), vectors.device
        if self._rows.device != device:
            self._rows, self._into = self._rows.to(device), self._into.to(device)
            self._rates, self._offsets = self._rates.to(device), {}
        if many not in self._offsets:
            first = self._count * torch.arange(many, device=device)
            self._offsets[many] = (first[:, None] + self._into).reshape(-1)
        parts = vectors[:, self._rows] * (self._rates.square() if squared else self._rates)
        made = parts.new_zeros(many * self._count)
        return made.index_add_(0, self._offsets[many], parts.reshape(-1)).view(many, self._count)


class Singles(Moments):
    """Symmetries of any other kind, one by one through their own methods.

    Their moments are what the charges pair to.
    """

    def __init__(self, members: Sequence[ContinuousSymmetry], quadratic: bool) -> None:
        self.members, self.quadratic = members, quadratic
        self._names = tuple(dict.fromkeys(n for m in members for n in m.names))

    def rows(self, stack: Stack, points: Points, pairs: Sequence[Pair]) -> list[Tensor]:
        return []

    def gathered(
        self, rows: Sequence[list[Tensor]], points: Points, pairs: Sequence[Pair]
    ) -> Tensor:
        given = [points.of(i, self._names) for i in range(len(points.given))]
        return torch.stack([self._paired(given[a], given[b]) for a, b in pairs])

    def pair(self, moments: Tensor) -> Tensor:
        return moments

    def slopes(self, moments: Tensor, points: Points, pair: Pair) -> Tensor:
        x, y = (points.of(i, self._names) for i in pair)
        return torch.cat([m.slopes(x, y) for m in self.members])

    def lengths(self, moments: Tensor, points: Points) -> Tensor:
        params = points.of(0, self._names)
        return torch.cat([m.lengths(params) for m in self.members])

    def decay(self, moments: Tensor, points: Points, weights: Mapping[str, float]) -> Tensor:
        own = points.of(0, self._names)
        return self._paired(own, {n: weights[n] * p for n, p in own.items()})

    def _paired(self, a: Parameters, b: Parameters) -> Tensor:
        return torch.cat([m.pairing(a, b) for m in self.members])


def each(weights: Mapping[str, float], owners: Owners, like: Tensor) -> Tensor:
    """The weight of the parameter that each moment belongs to."""
    found = torch.tensor([weights.get(name, 0.0) for name, _ in owners], dtype=like.dtype)
    return found.repeat_interleave(torch.tensor([n for _, n in owners])).to(like.device)
