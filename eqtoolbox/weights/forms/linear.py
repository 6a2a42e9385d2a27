"""Linear forms: constants added to entries, so that K is constant and Q a sum of entries."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from eqtoolbox.weights.forms.form import Balance, Form, Moments, Spread, summed
from eqtoolbox.weights.forms.held import Slab, StackLayout
from eqtoolbox.weights.forms.stack import Owned, Pair, Parameters, Points, Stack

Grouped = tuple[int, int, int]  # entries before an axis, stretches of the axis, entries after it


@dataclass(frozen=True, eq=False)
class Term:
    """One tensor's part: entries of slot slots[k] move by rates[k] c[units[k]].

    An axis is cut into stretches of equal length; a slot is one of them at one place around it.
    """

    name: str
    cut: Grouped | None  # None: one stretch of everything before the last axis
    slots: Tensor  # (entries,), in (before, stretches, after)
    units: Tensor  # (entries,)
    rates: Tensor  # (entries,), float64

    @property
    def count(self) -> int:
        """Units."""
        return int(self.units.max()) + 1

    def grouped(self, shape: torch.Size) -> Grouped:
        """The cut of a tensor of this shape."""
        if self.cut is not None:
            return self.cut
        return (1, 1, shape[-1]) if len(shape) > 1 else (1, shape[0], 1)

    def spread(self, coefficients: Tensor, like: Tensor) -> Tensor:
        """K_c as a tensor of this shape."""
        return self.once(coefficients, like).expand_as(self._rows(like)).reshape(like.shape)

    def added(self, coefficients: Tensor, tensor: Tensor) -> Tensor:
        """The tensor, which is written over, plus K_c, which is not made."""
        self._rows(tensor).add_(self.once(coefficients, tensor))
        return tensor

    def _rows(self, tensor: Tensor) -> Tensor:
        before, stretches, after = self.grouped(tensor.shape)
        return tensor.reshape(before, stretches, -1, after)

    def once(self, coefficients: Tensor, like: Tensor) -> Tensor:
        """What is the same all along a stretch: (before, stretches, 1, after)."""
        before, stretches, after = self.grouped(like.shape)
        device = coefficients.device
        parts = self.rates.to(coefficients) * coefficients[self.units.to(device)]
        zero = coefficients.new_zeros(before * stretches * after)
        made = zero.index_add(0, self.slots.to(device), parts).to(like)
        return made.reshape(before, stretches, 1, after)

    def sums(self, tensor: Tensor) -> Tensor:
        """The sum of every slot, float64."""
        before, stretches, after = self.grouped(tensor.shape)
        rows = tensor.reshape(before, stretches, -1, after)
        return rows.sum(2, dtype=torch.float64).reshape(-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearForm(Form):
    """T_c theta = theta + K_c, exactly flat (H K = 0, D K = 0), and Q_i = <K_i, theta>."""

    quadratic = False
    terms: tuple[Term, ...]
    balance: Balance | None = "mean zero"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(term.name for term in self.terms))

    def tangent(self, tensors: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        given = [term for term in self.terms if term.name in tensors]
        return summed((g.name, g.spread(coefficients, tensors[g.name])) for g in given)

    def flow(self, coefficients: Tensor) -> Callable[[Parameters], dict[str, Tensor]]:
        def moved(tensors: Parameters) -> dict[str, Tensor]:
            made: dict[str, Tensor] = {}
            for term in self.terms:
                if term.name in tensors:
                    old = made.get(term.name, tensors[term.name])
                    over = isinstance(tensors, Owned) and old.is_contiguous()
                    made[term.name] = (
                        term.added(coefficients, old)
                        if over
                        else old + term.spread(coefficients, old)
                    )
            return made

        return moved

    def pullback(
        self, tensors: Parameters, coefficients: Tensor, cotangent: Parameters
    ) -> dict[str, Tensor]:
        return {n: torch.zeros_like(cotangent[n]) for n in self.names}

    @classmethod
    def together(cls, forms: Sequence["LinearForm"], layout: StackLayout) -> "Sums":
        return Sums(forms, layout)


class Sums(Moments):
    """Entries of one point summed over stretches of an axis."""

    alike = True
    scaled_by_sizes = True

    def __init__(self, forms: Sequence[LinearForm], layout: StackLayout) -> None:
        self.forms = forms
        firsts = [0, *accumulate(f.dimension for f in forms)]
        self._terms = [(first, t) for f, first in zip(forms, firsts, strict=False) for t in f.terms]
        sums: dict[int, list[Grouped]] = {}
        cuts = [t.grouped(layout.groups[layout.place[t.name][0]][0]) for _, t in self._terms]
        for (_, term), cut in zip(self._terms, cuts, strict=True):
            those = sums.setdefault(layout.place[term.name][0], [])
            if cut not in those:
                those.append(cut)
        self._starts = dict[int, list[tuple[Grouped, int]]]()
        owners: list[tuple[str, int]] = []
        self._added: list[tuple[float, int]] = []  # entries of a slot, of how many slots
        at = 0
        for number, those in sorted(sums.items()):
            shape, names = layout.groups[number]
            for grouped in those:
                slots = math.prod(grouped)
                if grouped[0] == 1 and grouped[1] > 1:
                    layout.rows_stay(number, shape[0] // grouped[1], apart=True)
                self._starts.setdefault(number, []).append((grouped, at))
                owners += [(name, slots) for name in names]
                self._added.append((shape.numel() / slots, len(names) * slots))
                at += len(names) * slots
        self.owners, self.shape = owners, (at,)
        rows = []
        for (_, term), cut in zip(self._terms, cuts, strict=True):
            number, index = layout.place[term.name]
            start = dict(self._starts[number])[cut]
            rows.append(term.slots + start + index * math.prod(cut))
        into = torch.cat([first + term.units for first, term in self._terms])
        rates = torch.cat([term.rates for _, term in self._terms])
        self._spread = Spread(torch.cat(rows), into, rates, firsts[-1])

    def add(self, stack: Stack, points: Points, pairs: Sequence[Pair], moments: Tensor) -> None:
        piece, asked = stack.piece, [b for _, b in pairs]
        for grouped, start in self._starts.get(stack.number, ()):
            many, slots = piece.shape[0], math.prod(grouped)
            found = {p: _stretches(stack.each[p], grouped, piece) for p in dict.fromkeys(asked)}
            own = moments[:, start : start + many * slots].view(len(pairs), many, slots)
            for k, point in enumerate(asked):
                first, sums = found[point]
                own[k].narrow(1, first, sums.shape[1]).add_(sums)

    def pair(self, moments: Tensor) -> Tensor:
        return self._spread.of(moments)

    def sizes(self, moments: Tensor) -> Tensor:
        added = torch.cat([moments.new_full((1, slots), count) for count, slots in self._added], 1)
        return self._spread.of(added, magnitude=2)[0].sqrt()

    def scales(self, moments: Tensor) -> Tensor:
        return self._spread.of(moments, magnitude=1)[0]


def shift(name: str, shape: tuple[int, ...], axis: int, groups: Tensor, count: int) -> Term:
    """Every group of indices of an axis moves, at each place around it on its own.

    Args:
        name: of the parameter.
        shape: its own.
        axis: of it.
        groups: which group an index belongs to, (length of the axis,); -1: none.
        count: groups.
    """
    before, length, after = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    even = torch.arange(length) // max(length // count, 1)
    stretches = length % count == 0 and torch.equal(groups, even)
    places = torch.arange(count) if stretches else (groups >= 0).nonzero()[:, 0]
    own = places if stretches else groups[places]
    cut = count if stretches else length
    b, a = torch.arange(before)[:, None, None], torch.arange(after)
    slots = ((b * cut + places[:, None]) * after + a).reshape(-1)
    units = ((own[:, None] * before + b) * after + a).reshape(-1)
    rates = torch.ones(len(slots), dtype=torch.float64)
    return Term(name, (before, cut, after), slots, units, rates)


def column_sums(tensor: Tensor) -> Tensor:
    """Sum over all axes but the last, float64."""
    last = tensor.shape[-1]
    return tensor.reshape(tensor.numel() // max(last, 1), last).sum(0, dtype=torch.float64)


def _stretches(point: Tensor, grouped: Grouped, piece: Slab) -> tuple[int, Tensor]:
    """The first slot that these rows have entries of, and the sums of those: (tensors, slots)."""
    before, stretches, after = grouped
    if piece.rows == piece.length or before > 1 or stretches == 1:
        of_a_row = before * stretches * after // piece.length if before > 1 else 0
        rows = point.reshape(
            len(point), max(before * piece.rows // piece.length, 1), stretches, -1, after
        )
        return piece.first * of_a_row, _summed(rows).flatten(1)
    own = piece.length // stretches  # rows of a stretch
    first, last = piece.first // own, (piece.first + piece.rows - 1) // own + 1
    if last - first == 1 or not (piece.first % own or piece.rows % own):
        rows = point.reshape(len(point), 1, last - first, -1, after)
        return first * after, _summed(rows).flatten(1)
    into = torch.arange(piece.first, piece.first + piece.rows, device=point.device) // own - first
    made = point.new_zeros(len(point), last - first, after)
    rows = point.reshape(len(point), piece.rows, after)
    return first * after, made.index_add(1, into, rows).flatten(1)


def _summed(rows: Tensor) -> Tensor:
    return rows.sum(3) if rows.shape[3] > 1 else rows
