"""Charges: the conserved quantities of many symmetries, and what one step does to all of them."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.linalg.parcel import Parcel
from eqtoolbox.weights.charges.change import Change, Passed, Rates
from eqtoolbox.weights.charges.kinds import kinds_of, taken
from eqtoolbox.weights.charges.readout import Readout
from eqtoolbox.weights.forms.form import Moments
from eqtoolbox.weights.forms.held import StackLayout
from eqtoolbox.weights.forms.stack import Points
from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters
from eqtoolbox.world.shards import ALONE, Shards

STEP = (0, 1), (0, 2), (2, 2)  # theta with the gradient, with the update; the update with itself
ITSELF = (0, 0)  # theta with itself


@dataclass(frozen=True, kw_only=True, eq=False)
class ChargeReading:
    """What charges follow from at one point, read on the host when it is asked for."""

    taken: Readout  # moments of every kind, and of what a sketch stands for
    by_sizes: Readout  # of the absolute values of entries, of the kinds that scale by them
    own: list[int]  # where the moments of each kind are
    stands_for: list[int]  # and of all charges that it stands for
    read_beside: Callable[[], Tensor]  # what else tells of |K_i|^2, of all kinds that have it
    lengths: list[int]  # how many such numbers each kind has

    @property
    def moments(self) -> list[Tensor]:
        """Of every kind."""
        return [self.taken.moments[i] for i in self.own]

    @property
    def whole(self) -> list[Tensor]:
        """Of all charges that a sketch stands for."""
        return [self.taken.moments[i] for i in self.stands_for]

    @property
    def beside(self) -> list[Tensor | None]:
        """What no moments tell of the lengths of every kind; None where they tell all."""
        return [x if len(x) else None for x in torch.split(self.read_beside(), self.lengths)]


@checked
class Charges:
    """All charges of many symmetries, evaluated together without a loop over units.

    Vectors over charges and over generators are ordered by family and, within a family, by
    symmetry as given. Each family has its stretch in `families` and `generators`.

    Args:
        members: the symmetries.
        params: parameters of the shapes that they act on.
        sketch: whether random elements stand for general linear groups of over 16 dimensions.
        shards: what of these parameters is held here. All that hold some call the same in order.

    Example:
        >>> from eqtoolbox.weights.families.head import HeadShift
        >>> shift = HeadShift(name="h", dimension=2, bias="b")
        >>> Charges([shift], {"b": torch.tensor([1.0, 2.0])}).names
        ('b',)
    """

    def __init__(
        self,
        members: Sequence[ContinuousSymmetry],
        params: Parameters,
        sketch: bool = False,
        shards: Shards = ALONE,
    ) -> None:
        names = tuple(dict.fromkeys(n for m in members for n in m.names))
        self.names, self.shards = names, shards
        layout = self._layout = StackLayout(names, params, shards)
        kinds = list(kinds_of(members, layout, sketch))
        self.kinds = [kind for kind, _ in kinds]
        self.members = [m for _, of in kinds for m in of]
        self._counts = [n for kind in self.kinds for n in kind.counts]
        self._ends = [*accumulate(self._counts)]
        self.families = _stretches(self.members, self._counts)
        self.generators = _stretches(self.members, [n for k in self.kinds for n in k.orders])
        units = _numbered([kind.units for kind in self.kinds]).int()
        self.units = units.numpy()  # (charges,), ascending
        self.unit_starts = np.flatnonzero(np.diff(self.units, prepend=-1))  # their first charges
        self.unit_slices = {
            family: slice(int(self.units[w.start]), int(self.units[w.stop - 1]) + 1)
            for family, w in self.families.items()
            if w.stop > w.start
        }
        self._first = [of[0].family for _, of in kinds]  # the only one of what is sketched
        self._sketched = {of[0].family for kind, of in kinds if kind.whole is not kind}
        self._degrees = torch.tensor(
            [float(1 + k.quadratic) for k in self.kinds]
        ).repeat_interleave(torch.tensor([sum(k.counts) for k in self.kinds]))
        self.moving = {m.family for m in self.members if m.equivariant}  # they move outputs too
        self.meet = not all(m.form.apart for m in self.members)  # then `read` waits for the device

    @cached_property
    def labels(self) -> list[str]:
        """The symmetries that charges are of."""
        return [f"{m.family} of {m.name}: {m.charges}" for m in self.members]

    @cached_property
    def count(self) -> int:
        """How many charges there are."""
        return sum(self._counts)

    def read(self, params: Parameters, parcel: Parcel | None = None) -> ChargeReading:
        """Everything that charges need to know of these parameters, in float64.

        Args:
            params: where they are.
            parcel: with which the numbers go to the host; without, they are sent on their own.
        """
        parcel = Parcel() if parcel is None else parcel
        every = list(dict.fromkeys(k for kind in self.kinds for k in (kind, kind.whole)))
        points = Points(given=(params,), shards=self.shards)
        by_sizes, sized = self._by_sizes, replace(points, sizes=True)
        found = [k.beside(points) for k in self.kinds]
        home = torch.zeros(0, dtype=self._layout.dtype, device=self._layout.device)
        beside = torch.cat([home, *(x.to(home) for x in found if x is not None)])
        return ChargeReading(
            taken=taken(every, self._layout, points, [ITSELF], parcel=parcel),
            by_sizes=taken(by_sizes, self._layout, sized, [ITSELF], parcel=parcel),
            own=[every.index(k) for k in self.kinds],
            stands_for=[every.index(k.whole) for k in self.kinds],
            lengths=[0 if x is None else len(x) for x in found],
            read_beside=parcel.add(beside),
        )

    @property
    def _by_sizes(self) -> list[Moments]:
        return [kind for kind in self.kinds if kind.scaled_by_sizes]

    def values(self, reading: ChargeReading) -> Tensor:
        """Q of every charge: (charges,), float64."""
        pairs = zip(self.kinds, reading.moments, strict=True)
        return torch.cat([k.charge(m)[0] for k, m in pairs])

    def scales(self, reading: ChargeReading) -> Tensor:
        """Upper bound of |Q| of every charge at this size of parameters: (charges,)."""
        known = dict(zip(self._by_sizes, reading.by_sizes.moments, strict=True))
        pairs = zip(self.kinds, reading.whole, strict=True)
        return torch.cat([k.scales(known.get(k, m)) for k, m in pairs])

    def lengths(self, reading: ChargeReading) -> Tensor:
        """|K| of every generator: (dimension,), float64."""
        each = zip(self.kinds, reading.whole, reading.beside, strict=True)
        return torch.cat([k.lengths(m, beside) for k, m, beside in each])

    def sketched(self, reading: ChargeReading) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Of families that a sketch stands for: all charges, their scales, their units."""
        found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        for kind, moments, family in zip(self.kinds, reading.whole, self._first, strict=True):
            if kind.whole is not kind:
                of = found.setdefault(family, [])
                units = kind.whole.units + sum(int(u[-1]) + 1 for _, _, u in of)
                charges = kind.whole.charge(moments)[0]
                of.append((charges, kind.whole.scales(moments), units))
        return {
            family: (torch.cat(q), torch.cat(s), torch.cat(u))
            for family, (q, s, u) in ((f, zip(*of, strict=True)) for f, of in found.items())
        }

    def slopes(self, params: Parameters, cotangent: Parameters) -> Tensor:
        """<K_i, cotangent> of every generator: (dimension,), float64."""
        points = Points(given=(params, cotangent), shards=self.shards)
        found = taken(self.kinds, self._layout, points, [(0, 1)]).moments
        return torch.cat([k.slopes(m) for k, m in zip(self.kinds, found, strict=True)])

    def step(
        self,
        values: Tensor,
        before: Parameters,
        after: Parameters,
        gradient: Parameters | None,
        rates: Rates,
        beside: Tensor | None = None,
    ) -> Change:
        """What one step does to every charge, in float64 throughout.

        Args:
            values: Q at `before`, (charges,).
            before: parameters at the start of the step.
            after: and at its end.
            gradient: at `before`, as the optimizer was given it; None for a step without.
            rates: of the step.
            beside: further numbers that are added up over shards along with all this.
        """
        return self.passed(before, after, gradient, rates, beside).change(values)

    def passed(
        self,
        before: Parameters,
        after: Parameters,
        gradient: Parameters | None,
        rates: Rates,
        beside: Tensor | None = None,
        parcel: Parcel | None = None,
    ) -> Passed:
        """The one pass through all tensors that `step` takes; its change is read from it later.

        Args:
            before: as of `step`, like what follows.
            after: its end.
            gradient: at `before`.
            rates: of the step.
            beside: further numbers to bring along.
            parcel: with which the numbers go to the host; without, they are sent on their own.
        """
        points = Points(given=(before, gradient, after), update=True, shards=self.shards)
        shrink = {n: abs(rates.lr[n]) * rates.decay[n] for n in self.names}
        alike = len(set(shrink.values())) == 1  # then what decays is a multiple of Q
        pairs = STEP if alike else (*STEP, ITSELF)
        return Passed(
            kinds=self.kinds,
            taken=taken(self.kinds, self._layout, points, pairs, (1, 2), beside, parcel),
            pulled=gradient is not None,
            rates=rates,
            rate=self._rate(rates),
            shrink=shrink,
            degrees=self._degrees,
        )

    def _rate(self, rates: Rates) -> Tensor | float:
        """Learning rate of every charge: the largest among the parameters of its symmetry.

        Where they differ, the rest of the pull is a cause of its own.
        """
        if rates.alike:
            return next(iter(rates.lr.values()))
        each = [max((rates.lr[n] for n in m.names), key=abs) for m in self.members]
        counts = torch.tensor(self._counts)
        return torch.tensor(each, dtype=torch.float64).repeat_interleave(counts)

    def error(
        self, family: str, vector: NDArray[np.float64], generators: bool = False
    ) -> float | None:
        """Standard error of the norm of a family's charges, or of its slopes, where it is sketched.

        Args:
            family: whose norm is meant.
            vector: charges of all families, or slopes.
            generators: whether it is slopes.
        """
        start, variance = 0, None
        if family not in self._sketched:
            return None
        for kind, first in zip(self.kinds, self._first, strict=True):
            stop = start + sum(kind.orders if generators else kind.counts)
            own = kind.variance(vector[start:stop]) if first == family else None
            if own is not None:
                variance = (variance or 0.0) + own
            start = stop
        if variance is None:
            return None
        where = (self.generators if generators else self.families)[family]
        norm = float(np.linalg.norm(vector[where]))
        return variance**0.5 / (2 * norm) if norm else 0.0

    def unit(self, index: int) -> str:
        """Which unit of which symmetry a charge belongs to, in words."""
        which = bisect_right(self._ends, index)
        if which == len(self.members):
            raise IndexError("more charges than the symmetries have")
        first = self._ends[which] - self._counts[which]
        return f"{self.members[which].name}, unit {int(self.units[index] - self.units[first])}"


def _stretches(members: Sequence[ContinuousSymmetry], counts: list[int]) -> dict[str, slice]:
    found: dict[str, slice] = {}
    start = 0
    for member, count in zip(members, counts, strict=True):
        first = found.get(member.family, slice(start, start)).start
        found[member.family] = slice(first, start + count)
        start += count
    return found


def _numbered(units: Sequence[Tensor]) -> Tensor:
    """Units of all kinds, numbered on."""
    found: list[Tensor] = []
    start = 0
    for own in units:
        found.append(own + start)
        start += int(own[-1]) + 1 if len(own) else 0
    return torch.cat(found)
