"""Charges: the conserved quantities of many symmetries, and what one step does to all of them."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.weights.charges.kinds import Taken, kinds_of, taken
from eqtoolbox.weights.forms.held import StackLayout
from eqtoolbox.weights.forms.stack import Points
from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters
from eqtoolbox.world.shards import ALONE, Shards

STEP = (0, 1), (0, 2), (2, 2)  # theta with the gradient, with the update; the update with itself
ITSELF = (0, 0)  # theta with itself
FIRST = ((1.0,), (1.0,), (0.0,))  # a linear charge has no term of second order


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rate and decay that an optimizer applies to each parameter in one step."""

    lr: Mapping[str, float]  # sign included: negative where the optimizer ascends; 0 if not its
    decay: Mapping[str, float]  # gamma: theta shrinks by |lr| gamma theta

    @cached_property
    def alike(self) -> bool:
        """Whether all parameters learn and decay at the same rates."""
        return len(set(self.lr.values())) == 1 and len(set(self.decay.values())) == 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """One step's drift of every charge and its causes: (charges,) each, float64."""

    drift: Tensor  # Q(theta + d) - Q(theta) = the sum of the causes
    symmetry: Tensor  # -eta <K, g>: 0 while the symmetry holds, -eta c for an equivariance
    decay: Tensor  # -eta gamma <K, theta>
    finite_step: Tensor  # Q(d) for quadratic charges, 0 for linear ones
    slopes: Tensor  # <K_i, g> of every generator, (dimension,)
    learning_rates: Tensor  # sum_n (eta - eta_n) <K_n, g_n>: 0 where they are one
    pull: float  # |g| over the parameters of all symmetries
    beside: Tensor  # what came to the host along with it

    @property
    def optimizer(self) -> Tensor:
        """<K, d + eta (g + gamma theta)>: what else than gradient flow the step was."""
        rest = self.drift - self.symmetry - self.decay - self.finite_step
        return rest - self.learning_rates

    @property
    def causes(self) -> dict[str, Tensor]:
        """The causes by name."""
        names = ("symmetry", "decay", "optimizer", "finite_step", "learning_rates")
        return {c: getattr(self, c) for c in names}


@dataclass(frozen=True, kw_only=True, eq=False)
class ChargeReading:
    """What charges follow from at one point: moments of every kind."""

    points: Points  # one
    moments: list[Tensor]
    whole: list[Tensor]  # of all charges that a sketch stands for


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

    @cached_property
    def labels(self) -> list[str]:
        """The symmetries that charges are of."""
        return [f"{m.family} of {m.name}: {m.charges}" for m in self.members]

    @cached_property
    def count(self) -> int:
        """How many charges there are."""
        return sum(self._counts)

    def read(self, params: Parameters) -> ChargeReading:
        """Everything that charges need to know of these parameters, in float64."""
        every = list(dict.fromkeys(k for kind in self.kinds for k in (kind, kind.whole)))
        points = Points(given=(params,), shards=self.shards)
        found = taken(every, self._layout, points, [ITSELF]).moments
        moments, whole = (
            [found[every.index(k)] for k in of]
            for of in (self.kinds, [k.whole for k in self.kinds])
        )
        return ChargeReading(points=points, moments=moments, whole=whole)

    def values(self, reading: ChargeReading) -> Tensor:
        """Q of every charge: (charges,), float64."""
        pairs = zip(self.kinds, reading.moments, strict=True)
        return torch.cat([k.charge(m)[0] for k, m in pairs])

    def scales(self, reading: ChargeReading) -> Tensor:
        """Upper bound of |Q| of every charge at this size of parameters: (charges,)."""
        by_sizes = [kind for kind in self.kinds if kind.scaled_by_sizes]
        points = replace(reading.points, sizes=True)
        sizes = taken(by_sizes, self._layout, points, [ITSELF]).moments if by_sizes else []
        known = dict(zip(by_sizes, sizes, strict=True))
        pairs = zip(self.kinds, reading.whole, strict=True)
        return torch.cat([k.scales(known.get(k, m), reading.points) for k, m in pairs])

    def lengths(self, reading: ChargeReading) -> Tensor:
        """|K| of every generator: (dimension,), float64."""
        pairs = zip(self.kinds, reading.whole, strict=True)
        return torch.cat([k.lengths(m, reading.points) for k, m in pairs])

    def sketched(self, reading: ChargeReading) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Of families that a sketch stands for: all charges, their scales, their units."""
        found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        for kind, moments, family in zip(self.kinds, reading.whole, self._first, strict=True):
            if kind.whole is not kind:
                of = found.setdefault(family, [])
                units = kind.whole.units + sum(int(u[-1]) + 1 for _, _, u in of)
                charges = kind.whole.charge(moments)[0]
                of.append((charges, kind.whole.scales(moments, reading.points), units))
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
        points = Points(given=(before, gradient, after), update=True, shards=self.shards)
        shrink = {n: abs(rates.lr[n]) * rates.decay[n] for n in self.names}
        alike = len(set(shrink.values())) == 1  # then what decays is a multiple of Q
        pairs = STEP if alike else (*STEP, ITSELF)
        found = taken(self.kinds, self._layout, points, pairs, (1,), beside)
        paired, slopes = [], []
        for kind, moments in zip(self.kinds, found.moments, strict=True):
            forms = kind.pair(moments[: len(STEP)])
            paired.append(forms if kind.quadratic else forms * forms.new_tensor(FIRST))
            slopes.append(forms[0] if kind.alike else kind.slopes(moments))
        law, first, second = torch.cat(paired, 1)
        finite = 0.5 * second
        pulled = self._rates(rates, law) * law
        apart = torch.zeros_like(law)
        if gradient is not None and len(set(rates.lr.values())) > 1:
            apart = pulled - self._weighted(found, 0, rates.lr)
        decay = shrink[self.names[0]] * self._degrees.to(values) * values if alike else None
        return Change(
            drift=first + finite,
            symmetry=-pulled,
            learning_rates=apart,
            decay=-(self._weighted(found, len(STEP), shrink) if decay is None else decay),
            finite_step=finite,
            slopes=torch.cat(slopes),
            pull=found.sizes[0],
            beside=found.beside,
        )

    def _weighted(self, found: Taken, pair: int, weights: Mapping[str, float]) -> Tensor:
        """<grad Q, w d> of every charge for one of the pairs (theta, d), w a weight a parameter."""
        pairs = zip(self.kinds, found.moments, strict=True)
        return torch.cat([k.weighted(m[pair : pair + 1], weights) for k, m in pairs])

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

    def _rates(self, rates: Rates, like: Tensor) -> Tensor | float:
        """Learning rate of every charge: the largest among the parameters of its symmetry.

        Where they differ, the rest of the pull is a cause of its own.
        """
        if rates.alike:
            return next(iter(rates.lr.values()))
        each = [max((rates.lr[n] for n in m.names), key=abs) for m in self.members]
        counts = torch.tensor(self._counts)
        return torch.tensor(each, dtype=like.dtype).repeat_interleave(counts).to(like)

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
