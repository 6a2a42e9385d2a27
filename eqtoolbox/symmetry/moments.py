"""Moments: sums over tensors from which the charges of one kind of symmetry follow linearly.

Every charge is quadratic or linear in the parameters, so that a few sums per tensor (of products
along an axis, of rows with rows, of entries) give the charges of all units together. Products are
made in the tensors' own precision, one tensor at a time, without a copy of the model; sums over
steps are kept in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from eqtoolbox.symmetry.families.diagonal import DiagonalSymmetry, Leg, leg
from eqtoolbox.symmetry.families.translation import Shift, Translation
from eqtoolbox.symmetry.parameter import ContinuousSymmetry, Parameters


class Moments(ABC):
    """The charges of symmetries of one kind, in the order of the symmetries.

    With B the bilinear form of a charge: Q = B(theta, theta) / 2 where `quadratic`, else
    Q = B(theta), and <grad Q, d> = B(theta, d) or B(d).
    """

    quadratic = True

    def __init__(self, members: Sequence[ContinuousSymmetry]) -> None:
        self.members = tuple(members)

    @abstractmethod
    def of(self, a: Parameters, b: Parameters, exact: bool = False) -> Tensor:
        """Moments of a with b, of b alone if linear; `exact` makes the products in float64."""

    @abstractmethod
    def pair(self, moments: Tensor) -> Tensor:
        """<grad Q_i(a), b> from the moments of a with b: (charges,), float64."""

    @abstractmethod
    def slopes(self, moments: Tensor) -> Tensor:
        """<K_i(a), b> of every generator from the moments of a with b: (dimension,), float64."""

    @abstractmethod
    def decay(
        self, moments: Tensor, params: Parameters, weights: Mapping[str, float]
    ) -> Tensor:
        """<grad Q_i(theta), w theta>, w a weight of each parameter: (charges,).

        Args:
            moments: of theta with itself.
            params: theta.
            weights: w by name.
        """

    def charge(self, moments: Tensor) -> Tensor:
        """Q_i from the moments of theta with itself: (charges,), float64."""
        return self.pair(moments) / (2 if self.quadratic else 1)

    def after(self, moments: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Moments at theta + d from those of (theta, theta), (theta, d) and (d, d)."""
        return moments + 2 * first + second if self.quadratic else moments + first


class Diagonals(Moments):
    """Diagonal symmetries: products summed over everything but one axis of a parameter."""

    def __init__(self, members: Sequence[ContinuousSymmetry]) -> None:
        super().__init__(members)
        every = [(m, leg) for m in members for leg in diagonal_legs(m)]
        keys = dict.fromkeys((g.name, g.before, g.length, g.after) for _, g in every)
        units = dict(zip(map(id, members), _starts(m.dimension for m in members), strict=True))
        self._axes: dict[str, list[tuple[int, int, int]]] = {}
        for name, *axis in keys:
            self._axes.setdefault(name, []).append((axis[0], axis[1], axis[2]))
        order = [(name, *axis) for name, axes in self._axes.items() for axis in axes]
        starts = dict(zip(order, _starts(k[2] for k in order), strict=True))
        self._owners = [(name, length) for name, _, length, _ in order]
        self._rows = torch.cat(
            [g.positions + starts[g.name, g.before, g.length, g.after] for _, g in every]
        )
        self._units = torch.cat([g.units + units[id(m)] for m, g in every])
        self._rates = torch.cat([g.rates for _, g in every])
        self._count = sum(m.dimension for m in members)

    def of(self, a: Parameters, b: Parameters, exact: bool = False) -> Tensor:
        rows = []
        for name, axes in self._axes.items():
            product = _product(a[name], b[name], exact)
            rows += [_outside(product, *axis) for axis in axes]
        return torch.cat(rows).double()

    def pair(self, moments: Tensor) -> Tensor:
        return self._spread(moments, self._rates)

    def slopes(self, moments: Tensor) -> Tensor:
        return self.pair(moments)

    def scale(self, moments: Tensor) -> Tensor:
        """Upper bound of |Q_i|: (charges,)."""
        return 0.5 * self._spread(moments, self._rates.abs())

    def lengths(self, moments: Tensor) -> Tensor:
        """|K_i|: (dimension,)."""
        return self._spread(moments, self._rates.square()).clamp_min(0).sqrt()

    def decay(
        self, moments: Tensor, params: Parameters, weights: Mapping[str, float]
    ) -> Tensor:
        each = torch.tensor([weights[name] for name, _ in self._owners], dtype=torch.float64)
        counts = torch.tensor([length for _, length in self._owners])
        return self.pair(moments * each.repeat_interleave(counts).to(moments.device))

    def _spread(self, moments: Tensor, rates: Tensor) -> Tensor:
        if self._rows.device != moments.device:
            self._rows, self._units = self._rows.to(moments.device), self._units.to(moments.device)
            self._rates, rates = self._rates.to(moments.device), rates.to(moments.device)
        parts = moments[self._rows] * rates
        return moments.new_zeros(self._count).index_add_(0, self._units, parts)


class Singles(Moments):
    """Symmetries of any other kind, one by one through their own methods, in float64.

    Their moments are what their charges and their generators pair to.
    """

    def __init__(self, members: Sequence[ContinuousSymmetry], quadratic: bool) -> None:
        super().__init__(members)
        self.quadratic = quadratic
        self._charges = sum(m.charges for m in members)

    def of(self, a: Parameters, b: Parameters, exact: bool = False) -> Tensor:
        return torch.cat([m.pairing(a, b) for m in self.members] + self._slopes(a, b))

    def _slopes(self, a: Parameters, b: Parameters) -> list[Tensor]:
        return [m.slopes(a, b) for m in self.members]

    def pair(self, moments: Tensor) -> Tensor:
        return moments[: self._charges]

    def slopes(self, moments: Tensor) -> Tensor:
        return moments[self._charges :]

    def decay(
        self, moments: Tensor, params: Parameters, weights: Mapping[str, float]
    ) -> Tensor:
        names = {n for m in self.members for n in m.names}
        return self.pair(self.of(params, {n: weights[n] * params[n] for n in names}))


class Shifts(Moments):
    """Translations: sums of entries; K is constant and Q linear."""

    quadratic = False

    def __init__(self, members: Sequence[ContinuousSymmetry]) -> None:
        super().__init__(members)
        self._shifts = [s for m in members for s in shifts(m)]
        self._sums = [_sum(s) for s in self._shifts]

    def of(self, a: Parameters, b: Parameters, exact: bool = False) -> Tensor:
        found = [
            sum_(b[s.name].double() if exact else b[s.name])
            for s, sum_ in zip(self._shifts, self._sums, strict=True)
        ]
        return torch.cat(found).double()

    def pair(self, moments: Tensor) -> Tensor:
        return moments

    def slopes(self, moments: Tensor) -> Tensor:
        return moments

    def lengths(self, moments: Tensor) -> Tensor:
        """|K_i|: (dimension,)."""
        counts = [
            torch.bincount(s.groups[s.groups >= 0], minlength=s.count).repeat_interleave(s.width)
            for s in self._shifts
        ]
        return torch.cat(counts).to(moments).sqrt()

    def decay(
        self, moments: Tensor, params: Parameters, weights: Mapping[str, float]
    ) -> Tensor:
        each = torch.tensor([weights[s.name] for s in self._shifts], dtype=torch.float64)
        counts = torch.tensor([s.count * s.width for s in self._shifts])
        return self.pair(moments * each.repeat_interleave(counts).to(moments.device))


def diagonal_legs(member: ContinuousSymmetry) -> tuple[Leg, ...]:
    """What a diagonal symmetry scales; nothing for other kinds."""
    if isinstance(member, DiagonalSymmetry):
        return member.legs
    return ()


def shifts(member: ContinuousSymmetry) -> tuple[Shift, ...]:
    """What a translation moves; nothing for other kinds."""
    if isinstance(member, Translation):
        return member.shifts
    return ()


def _starts(sizes: Iterable[int]) -> list[int]:
    """Where each of several stretches begins."""
    return [0, *accumulate(sizes)][:-1]


HALF = (torch.float16, torch.bfloat16)


def _product(a: Tensor, b: Tensor, exact: bool) -> Tensor:
    if exact:
        return a.double() * b.double()
    return a.float() * b.float() if a.dtype in HALF or b.dtype in HALF else a * b


def _outside(product: Tensor, before: int, length: int, after: int) -> Tensor:
    """Sum over everything but the axis, (length,)."""
    if before == 1:
        return product.reshape(length, after).sum(1)
    if after == 1:
        return product.reshape(before, length).sum(0)
    return product.reshape(before, length, after).sum((0, 2))


def _sum(shift: Shift) -> Callable[[Tensor], Tensor]:
    """The sums per group and column of a shift, by the shortest way."""
    if shift.count == 1 and bool((shift.groups == 0).all()):
        return lambda t: t.sum(shift.axis, dtype=_summing(t)).reshape(-1)
    chosen = (shift.groups >= 0).nonzero()[:, 0]
    if shift.width == 1 and bool((shift.groups[chosen] == torch.arange(shift.count)).all()):
        return lambda t: t.reshape(-1)[chosen.to(t.device)]
    return shift.sums


def _summing(tensor: Tensor) -> torch.dtype | None:
    return torch.float32 if tensor.dtype in HALF else None
