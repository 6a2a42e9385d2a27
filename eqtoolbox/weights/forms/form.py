"""Form: what a continuous symmetry is made of, as data, and what evaluates forms of one kind.

Every charge is quadratic or linear in the parameters, so that a few sums per stack of tensors (of
products along an axis, of rows with rows, of entries) give the charges of all units together, of
one symmetry or of thousands. All of it is in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqtoolbox.weights.forms.held import CACHED, StackLayout
from eqtoolbox.weights.forms.stack import Pair, Parameters, Points, Stack, fresh

Balance = Literal["equal sides", "norm one", "equal grams", "mean zero", "bias zero"]
Owners = Sequence[tuple[str, int]]  # which parameter the next so many moments belong to


@dataclass(frozen=True, kw_only=True, eq=False)
class Form(ABC):
    """A Lie algebra acting on tensors: K_c(theta), linear in c, and the group that it generates."""

    quadratic: ClassVar[bool] = True  # charges; otherwise linear
    contains: frozenset[str] = frozenset()  # discrete families inside the group
    power: float = 1.0  # entries grow like e^(power s) at most
    squares: bool = False  # every charge is half the squared norm of what its generator moves
    balance: Balance | None = None  # what its canonical point has; None: it has none
    unbalanced: str = "has no known canonical point"  # why, where it has none
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

    def meetings(self, points: Points) -> Tensor:
        """What parts that meet add to |K_i|^2 of every generator at point 0: (dimension,)."""
        raise NotImplementedError(f"the parts of {type(self).__name__} never meet")


class Moments(ABC):
    """The charges of forms of one kind, in the order of the forms.

    With B the bilinear form of a charge: Q = B(theta, theta) / 2 where `quadratic`, else
    Q = B(theta), and <grad Q, d> = B(theta, d) or B(d).
    """

    forms: Sequence[Form]
    shape: tuple[int, ...]  # of the moments of one pair of points
    owners: Owners  # of the moments, along their first dimension
    alike: ClassVar[bool] = False  # every generator has its charge: slopes are pairings
    multiplies: ClassVar[bool] = False  # takes products of a stack: when nobody needs its points
    scaled_by_sizes: ClassVar[bool] = False  # scales follow from moments of absolute values

    @property
    def quadratic(self) -> bool:
        """Whether charges are quadratic."""
        return self.forms[0].quadratic

    @property
    def whole(self) -> "Moments":
        """All charges that these stand for: themselves unless said."""
        return self

    @abstractmethod
    def add(self, stack: Stack, points: Points, pairs: Sequence[Pair], moments: Tensor) -> None:
        """Add what one stack gives to the moments of a with b for every pair (a, b) of points.

        Args:
            stack: filled with `points`; its memory is written over by the next one.
            points: everything.
            pairs: of points.
            moments: (pairs, *shape), of b alone if linear.
        """

    @property
    def read_whole(self) -> tuple[str, ...]:
        """Small tensors of the second point that are read as a whole: none unless said."""
        return ()

    def rest(self, points: Points, pairs: Sequence[Pair]) -> Tensor | float:
        """What moments have that no sum over stacks gives: nothing unless said."""
        return 0.0

    @abstractmethod
    def pair(self, moments: Tensor) -> Tensor:
        """<grad Q_i(a), b> from the moments of a with b: (pairs, charges), float64."""

    def slopes(self, moments: Tensor) -> Tensor:
        """<K_i(a), b> of every generator from the moments of a with b: (dimension,), float64."""
        return self.pair(moments[:1])[0]

    def weighted(self, moments: Tensor, weights: Mapping[str, float]) -> Tensor:
        """<grad Q_i(a), w b> with a weight w of each parameter: (charges,).

        Args:
            moments: of a with b, one pair.
            weights: w by name.
        """
        each = [weights.get(name, 0.0) for name, _ in self.owners]
        counts = torch.tensor([count for _, count in self.owners])
        own = torch.tensor(each, dtype=torch.float64).repeat_interleave(counts).to(moments)
        return self.pair(moments * own.reshape(-1, *[1] * (moments.dim() - 2)))[0]

    @abstractmethod
    def sizes(self, moments: Tensor) -> Tensor:
        """|K_i| at point 0 of every generator whose parts do not meet: (dimension,), float64."""

    def beside(self, points: Points) -> Tensor | None:
        """What no moments tell of |K_i|^2 at point 0: (dimension,), where it is; None: nothing."""
        if all(form.apart for form in self.forms):
            return None
        orders = zip(self.forms, self.orders, strict=True)
        found = [torch.zeros(n) if f.apart else f.meetings(points) for f, n in orders]
        home = next(x for f, x in zip(self.forms, found, strict=True) if not f.apart)
        return torch.cat([x.to(home) for x in found])

    def lengths(self, moments: Tensor, beside: Tensor | None) -> Tensor:
        """|K_i| at point 0 of every generator, by what `beside` tells: (dimension,), float64."""
        found = self.sizes(moments)
        if beside is None:
            return found
        return (found.square() + beside.to(found)).clamp_min(0).sqrt()

    @abstractmethod
    def scales(self, moments: Tensor) -> Tensor:
        """What |Q| of every charge could be at parameters of point 0's size: (charges,).

        From moments of the sizes of entries where `scaled_by_sizes`.
        """

    def variance(self, vector: NDArray[np.float64]) -> float | None:
        """Variance of |vector|^2, of charges or slopes, as an estimate; None: it is none."""
        return None

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
        by_sizes = replace(self, points=replace(self.points, sizes=self.kind.scaled_by_sizes))
        return self.kind.scales(by_sizes._moments((0, 0)))

    @property
    def lengths(self) -> Tensor:
        return self.kind.lengths(self._moments((0, 0)), self.kind.beside(self.points))

    @property
    def pairing(self) -> Tensor:
        return self.kind.pair(self._moments((0, 1)))[0]

    @property
    def slopes(self) -> Tensor:
        return self.kind.slopes(self._moments((0, 1)))

    def _moments(self, pair: Pair) -> Tensor:
        moments = None
        for stack in fresh(self.layout, self.points):
            if moments is None:
                moments = stack.each[0].new_zeros(1, *self.kind.shape)
            self.kind.add(stack, self.points, [pair], moments)
        assert moments is not None, "a form moves at least one tensor"
        return moments.add_(self.kind.rest(self.points, [pair]))


class Spread:
    """A sparse matrix: entry `into[k]` of the result takes rates[k] times entry `rows[k]`."""

    def __init__(self, rows: Tensor, into: Tensor, rates: Tensor, count: int) -> None:
        self._rows, self._into, self._count = rows.int(), into.int(), count
        narrow = rates.float()  # 1, -1 and 1/2 lose nothing by it
        self._rates = narrow if torch.equal(narrow.to(rates), rates) else rates

    def of(self, vectors: Tensor, magnitude: int = 0) -> Tensor:
        """(vectors, entries) to (vectors, count), float64; by a power of |rates| if said."""
        if self._rows.device != vectors.device:
            self._rows, self._into, self._rates = (
                x.to(vectors.device) for x in (self._rows, self._into, self._rates)
            )
        rates = self._rates.to(vectors)
        rates = rates.abs() ** magnitude if magnitude else rates
        found = []
        for own in torch.split(vectors, max(CACHED // max(len(rates), 1), 1)):
            made = own.new_zeros(len(own), self._count)
            found.append(made.index_add(1, self._into, own.index_select(1, self._rows) * rates))
        return torch.cat(found) if len(found) > 1 else found[0]


def summed(parts: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """What belongs to one tensor added up."""
    total: dict[str, Tensor] = {}
    for name, part in parts:
        total[name] = total[name] + part if name in total else part
    return total
