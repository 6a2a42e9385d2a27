"""Form: what a continuous symmetry is made of, as data, and what evaluates forms of one kind.

Every charge is quadratic or linear in the parameters, so that a few sums per stack of tensors (of
products along an axis, of rows with rows, of entries) give the charges of all units together, of
one symmetry or of thousands. Products are made in the stack's own precision; what adds up over
steps is kept in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from eqtoolbox.weights.forms.stack import (
    Pair,
    Parameters,
    Points,
    Stack,
    StackLayout,
    fresh,
    pieces,
)

Owners = Sequence[tuple[str, int]]  # which parameter the next so many moments belong to


@dataclass(frozen=True, kw_only=True, eq=False)
class Form(ABC):
    """A Lie algebra acting on tensors: K_c(theta), linear in c, and the group that it generates."""

    quadratic: ClassVar[bool] = True  # charges; otherwise linear
    contains: frozenset[str] = frozenset()  # discrete families inside the group
    power: float = 1.0  # entries grow like e^(power s) at most
    squares: bool = False  # every charge is half the squared norm of what its generator moves
    balance: str = "has no known canonical point"  # step to where charges vanish, or why none is
    large: bool = False  # so many charges that random elements may stand for them
    dimension: int  # generators

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Tensors that move."""

    @property
    def charges(self) -> int:
        """How many numbers are conserved: as many as generators unless said."""
        return self.dimension

    @property
    def apart(self) -> bool:
        """Whether no two parts of a generator meet in one entry."""
        return True

    @property
    def key(self) -> tuple[Any, ...]:
        """Forms of the same key are evaluated together."""
        return (type(self).__name__,)

    def flow(self, coefficients: Tensor) -> Callable[[Parameters], dict[str, Tensor]]:
        """T_c as a map, of those of its tensors that are given; theta + K_c unless said."""
        return lambda tensors: {
            n: tensors[n] + k for n, k in self.tangent(tensors, coefficients).items()
        }

    @abstractmethod
    def tangent(self, tensors: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        """K_c at these tensors."""

    @abstractmethod
    def pullback(
        self, tensors: Parameters, coefficients: Tensor, cotangent: Parameters
    ) -> dict[str, Tensor]:
        """(D K_c)^T cotangent."""

    @classmethod
    @abstractmethod
    def together(cls, forms: Sequence[Any], layout: StackLayout) -> "Moments":
        """What evaluates forms of one key at once."""

    def alone(self, *given: Parameters) -> "Alone":
        """This form by itself at one point or two."""
        shapes = tuple(given[0][n].shape for n in self.names)
        if shapes not in self._plans:
            layout = StackLayout(self.names, given[0])
            self._plans[shapes] = layout, self.together([self], layout)
        layout, kind = self._plans[shapes]
        return Alone(layout=layout, kind=kind, points=Points(given=given))

    @cached_property
    def _plans(self) -> dict[tuple[torch.Size, ...], tuple[StackLayout, "Moments"]]:
        return {}

    def measured(self, tensors: Parameters) -> Tensor:
        """|K_i| generator by generator, where parts meet: (dimension,), float64."""
        exact = {name: tensors[name].double() for name in self.names}
        units = torch.eye(self.dimension, dtype=torch.float64, device=exact[self.names[0]].device)
        squares = [
            torch.stack([k.square().sum() for k in self.tangent(exact, u).values()]) for u in units
        ]
        return torch.stack(squares).sum(1).sqrt()


class Moments(ABC):
    """The charges of forms of one kind, in the order of the forms.

    With B the bilinear form of a charge: Q = B(theta, theta) / 2 where `quadratic`, else
    Q = B(theta), and <grad Q, d> = B(theta, d) or B(d).
    """

    forms: Sequence[Form]
    alike: ClassVar[bool] = False  # every generator has its charge: slopes are pairings

    @property
    def quadratic(self) -> bool:
        """Whether charges are quadratic."""
        return self.forms[0].quadratic

    @abstractmethod
    def rows(self, stack: Stack, points: Points, pairs: Sequence[Pair]) -> list[Tensor]:
        """What one stack gives to the moments of every pair of points: (pairs, ...) each.

        Args:
            stack: filled with `points`; its memory is written over by the next one.
            points: everything.
            pairs: of points.
        """

    def gathered(self, rows: Sequence[list[Tensor]], pairs: Sequence[Pair]) -> Tensor:
        """Moments of a with b for every pair (a, b), of b alone if linear: (pairs, ...), float64.

        Args:
            rows: of all stacks, in their order.
            pairs: of points.
        """
        return pieces(rows)

    @abstractmethod
    def pair(self, moments: Tensor) -> Tensor:
        """<grad Q_i(a), b> from the moments of a with b: (pairs, charges), float64."""

    def slopes(self, moments: Tensor, points: Points, pair: Pair) -> Tensor:
        """<K_i(a), b> of every generator: (dimension,), float64; `moments` those of a with b."""
        return self.pair(moments[:1])[0]

    @abstractmethod
    def sizes(self, moments: Tensor, points: Points) -> Tensor:
        """|K_i| at point 0 of every generator whose parts do not meet: (dimension,), float64."""

    def lengths(self, moments: Tensor, points: Points) -> Tensor:
        """|K_i| at point 0 of every generator: (dimension,), float64."""
        found = self.sizes(moments, points)
        if all(form.apart for form in self.forms):
            return found
        parts = zip(self.forms, torch.split(found, self.orders), strict=True)
        return torch.cat([p if f.apart else f.measured(points.of(0, f.names)) for f, p in parts])

    @abstractmethod
    def decay(self, moments: Tensor, weights: Mapping[str, float]) -> Tensor:
        """<grad Q_i(theta), w theta>, w a weight of each parameter: (charges,).

        Args:
            moments: of theta with itself.
            weights: w by name.
        """

    @abstractmethod
    def scales(self, moments: Tensor, points: Points) -> Tensor:
        """What |Q| of every charge could be at parameters of point 0's size: (charges,)."""

    @property
    def units(self) -> Tensor:
        """Which unit each charge belongs to: (charges,); every charge is one unless said."""
        return torch.arange(sum(self.counts))

    def charge(self, moments: Tensor) -> Tensor:
        """Q_i from the moments of theta with itself: (pairs, charges), float64."""
        return self.pair(moments) / (2 if self.quadratic else 1)

    @property
    def counts(self) -> list[int]:
        """How many charges each form has."""
        return [f.charges for f in self.forms]

    @property
    def orders(self) -> list[int]:
        """How many generators each form has."""
        return [f.dimension for f in self.forms]


@dataclass(frozen=True, kw_only=True, eq=False)
class Alone:
    """One form evaluated in float64, differentiable by the points that it is given."""

    layout: StackLayout
    kind: Moments
    points: Points  # theta, and what it is paired with

    @property
    def charge(self) -> Tensor:
        return self.kind.charge(self._moments((0, 0)))[0]

    @property
    def scale(self) -> Tensor:
        return self.kind.scales(self._moments((0, 0)), self.points)

    @property
    def lengths(self) -> Tensor:
        return self.kind.lengths(self._moments((0, 0)), self.points)

    @property
    def pairing(self) -> Tensor:
        return self.kind.pair(self._moments((0, 1)))[0]

    @property
    def slopes(self) -> Tensor:
        return self.kind.slopes(self._moments((0, 1)), self.points, (0, 1))

    def _moments(self, pair: Pair) -> Tensor:
        stacks = fresh(self.layout, self.points)
        rows = [self.kind.rows(stack, self.points, [pair]) for stack in stacks]
        return self.kind.gathered(rows, [pair])


class Spread:
    """A sparse matrix: entry `into[k]` of the result takes rates[k] times entry `rows[k]`."""

    def __init__(self, rows: Tensor, into: Tensor, rates: Tensor, count: int) -> None:
        self._rows, self._into, self._rates, self._count = rows, into, rates, count
        self._offsets: dict[int, Tensor] = {}  # of the results of several vectors, one behind other

    def of(self, vectors: Tensor, magnitude: int = 0) -> Tensor:
        """(vectors, entries) to (vectors, count), float64; by a power of |rates| if said."""
        many, device = len(vectors), vectors.device
        if self._rows.device != device:
            self._rows, self._into = self._rows.to(device), self._into.to(device)
            self._rates, self._offsets = self._rates.to(device), {}
        if many not in self._offsets:
            first = self._count * torch.arange(many, device=device)
            self._offsets[many] = (first[:, None] + self._into).reshape(-1)
        rates = self._rates.abs() ** magnitude if magnitude else self._rates
        parts = vectors[:, self._rows] * rates
        made = parts.new_zeros(many * self._count)
        return made.index_add(0, self._offsets[many], parts.reshape(-1)).view(many, self._count)


def summed(parts: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """What belongs to one tensor added up."""
    total: dict[str, Tensor] = {}
    for name, part in parts:
        total[name] = total[name] + part if name in total else part
    return total


def each(weights: Mapping[str, float], owners: Owners, like: Tensor) -> Tensor:
    """The weight of the parameter that each moment belongs to."""
    found = torch.tensor([weights.get(name, 0.0) for name, _ in owners], dtype=like.dtype)
    return found.repeat_interleave(torch.tensor([n for _, n in owners])).to(like.device)
