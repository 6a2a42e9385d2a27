"""Shifts: translations, compensations and bias shifts, proposed from a trace and from gradients."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from eqtoolbox.weights.families.translation import Translation
from eqtoolbox.weights.forms.linear import Term, column_sums, shift
from eqtoolbox.weights.search.groups import Stretch, grouped, stretches
from eqtoolbox.weights.tracing.trace import Trace, layer_name
from eqtoolbox.world.shards import ALONE, Piece, Shards, embedded

FEW = 8
_ZERO = 1e-9  # gradient sums below this share of the largest entry count as zero
T = TypeVar("T")


class TranslationSearch:
    """Shifts to which the gradient is orthogonal to rounding, while it comes in pieces.

    Tried are: each entry of a vector, all indices of an axis together, and stretches of them that
    one softmax or norm reads. Whether they are symmetries is for the finite check to say.

    Args:
        order: of the parameters, the model's.
        tried: stretches that may be groups.
        shards: what of the parameters is held here.
        zero: sums below this share of the largest entry count as zero.
    """

    def __init__(
        self,
        order: Sequence[str],
        tried: Sequence[Stretch],
        shards: Shards = ALONE,
        zero: float = _ZERO,
    ) -> None:
        self.vectors: dict[str, Tensor] = {}  # gradients of one axis, kept
        self.columns: dict[str, Tensor] = {}  # sums over all axes but the last
        self._order, self._stretches, self._shards, self._zero = order, tried, shards, zero
        self._sizes = Counter(map(layer_name, order))  # how many parameters each layer has
        self._beside: dict[str, list[Tensor]] = {}  # by layer: slopes of matrices at each index
        self._unread: dict[str, int] = {}  # entries of vectors that no sample of the batch reads
        self._seen: dict[str, Tensor] = {}  # entries of vectors that were read at another point
        self._sloping: dict[str, Tensor] = {}  # entries of vectors that have a slope after all
        self._shifts: dict[str, Term] = {}
        self._largest = 0.0

    @classmethod
    def of(cls, trace: Trace) -> "TranslationSearch":
        """Of what a trace runs."""
        return cls(list(trace.parameters), stretches(trace))

    def add(self, gradient: Mapping[str, Tensor]) -> None:
        """Take one piece of the gradient into account."""
        shards = self._shards
        wholes = {n: shards.piece(n, g).whole for n, g in gradient.items()}
        given = {n: g for n, g in gradient.items() if wholes[n].numel()}
        self.vectors |= shards.whole({n: g for n, g in given.items() if g.dim() == 1})
        largest = self._most([_largest(g) for g in given.values()], given)
        self._largest = max(self._largest, *largest, 0.0)
        for (name, g), most in zip(given.items(), largest, strict=True):
            if g.dim():
                self.columns[name] = self._sums(name, g)
            if g.dim() > 1 and self._sizes[layer_name(name)] > 1:
                whole = shards.piece(name, g).dim is None
                self._beside.setdefault(layer_name(name), []).extend(_sizes(g) if whole else ())
            if g.dim() > 1 and most:
                found = self._of_groups(name, g, most)
                if found is not None:
                    self._shifts[name] = found

    def _most(self, own: list[float], gradient: Mapping[str, Tensor]) -> list[float]:
        """The largest of each over all shards."""
        if not own:
            return []
        every = torch.zeros(self._shards.ranks, len(own), dtype=torch.float64)
        every[self._shards.rank] = torch.tensor(own, dtype=torch.float64)
        beside = next(iter(gradient.values()))
        most: list[float] = self._shards.added(every, beside).amax(0).tolist()
        return most

    def _sums(self, name: str, g: Tensor) -> Tensor:
        """Sums over all axes but the last."""
        piece, sums = self._shards.piece(name, g), column_sums(g)
        if piece.dim is None:
            return sums
        if piece.dim == g.dim() - 1:
            return embedded(sums, Piece(piece.whole[-1:], 0, piece.start, piece.stop), self._shards)
        return self._shards.total(sums)

    def in_order(self, found: Mapping[str, T]) -> dict[str, T]:
        """By parameter, in the model's order and not in that of the backward."""
        return {name: found[name] for name in self._order if name in found}

    def proposals(self) -> Iterator[Translation]:
        """One proposal a layer."""
        layers: dict[str, list[Term]] = {}
        for name in self._order:
            found = self._shifts.get(name)
            if found is None and name in self.vectors:
                found = self._of_vector(name, self.vectors[name])
            if found is not None:
                layers.setdefault(layer_name(name), []).append(found)
        for layer, shifts in layers.items():
            dimension = sum(s.count for s in shifts)
            yield Translation(name=layer, dimension=dimension, shifts=tuple(shifts))

    @property
    def unseen(self) -> bool:
        """Whether of single entries to propose some were read at no other point."""
        seen = {n: self._noted(self._seen, n) for n in self.vectors}
        return any(bool((self._flat(n, g) & ~seen[n]).any()) for n, g in self.vectors.items())

    def but_for(self, there: "TranslationSearch") -> None:
        """Without entries that have a slope at another point."""
        least = self._zero * there._largest
        for name, g in there.vectors.items():
            self._seen[name] = self._noted(self._seen, name) | ~there._not_read(name, g)
            self.settle({name: g.abs() > least})

    def doubted(self) -> dict[str, Tensor]:
        """Gradients of vectors of which entries are next to nothing and no row beside has more.

        Slopes that vanish, as behind saturated units, do so together with those of the matrix of
        their layer; those of what a norm takes back are rounding by themselves.
        """
        found: dict[str, Tensor] = {}
        for name, g in self.vectors.items():
            rows = self._rows(name, g)
            known = (rows > 0).any(0) & ((rows * self._zero >= g.abs()) | (rows == 0)).all(0)
            if bool((self._flat(name, g) & ~known).any()):
                found[name] = g
        return found

    def settle(self, sloping: Mapping[str, Tensor]) -> None:
        """Take note of entries of vectors that have a slope."""
        for name, some in sloping.items():
            self._sloping[name] = self._noted(self._sloping, name) | some

    def _noted(self, masks: Mapping[str, Tensor], name: str) -> Tensor:
        return masks.get(name, torch.zeros_like(self.vectors[name], dtype=torch.bool))

    def _flat(self, name: str, g: Tensor) -> Tensor:
        """Which entries of a vector have no slope but rounding."""
        small = g.abs() <= self._zero * self._largest
        return small & ~self._not_read(name, g) & ~self._noted(self._sloping, name)

    def _of_vector(self, name: str, g: Tensor) -> Term | None:
        """Single entries, and groups of the others."""
        if not bool(g.any()) or g.numel() < 2:
            return None
        flat = self._flat(name, g)
        _, groups = self._groups(name, g.masked_fill(flat, 0), float(g.abs().max()))
        groups = torch.where(flat.cpu(), -1, groups)
        count = int(groups.max()) + 1
        groups = torch.where(flat.cpu(), count - 1 + flat.cpu().cumsum(0), groups)
        count += int(flat.sum())
        return shift(name, g.shape, 0, groups, count) if count else None

    def _rows(self, name: str, g: Tensor) -> Tensor:
        """Slopes of matrices beside a vector at each of its indices: (axes, entries).

        Of pieces of matrices nothing is known.
        """
        beside = [s.to(g) for s in self._beside.get(layer_name(name), ()) if len(s) == len(g)]
        return torch.stack(beside) if beside else g.new_zeros(0, len(g))

    def _not_read(self, name: str, g: Tensor) -> Tensor:
        """Entries of a vector without any slope, and units of matrices beside it: (entries,).

        No sample reads them, as outputs that a mask or an index leaves out: another one may. What
        a norm takes back has slopes that are rounding, and matrices beside it that have more.
        """
        found, beside = g == 0, self._beside.get(layer_name(name))
        if beside is not None:
            found = found & (self._rows(name, g) == 0).any(0)
        self._unread[name] = int(found.sum())
        return found

    def notes(self) -> Iterator[str]:
        """What was not tried as translations, as nothing of the batch reads it."""
        for name, count in self.in_order(self._unread).items():
            if count:
                yield f"{name}: {count} entries that no sample of this batch reads are not tried"

    def _of_groups(self, name: str, g: Tensor, largest: float) -> Term | None:
        axis, groups = self._groups(name, g, largest)
        count = int(groups.max()) + 1
        return shift(name, self._whole(name, g), axis, groups, count) if count else None

    def _groups(self, name: str, g: Tensor, largest: float) -> tuple[int, Tensor]:
        """The first axis that has groups whose sums vanish, and to which an index belongs."""
        whole = self._whole(name, g)
        for axis in range(min(len(whole), 3)):
            groups = grouped(self._profile(name, g, axis), self._stretches, self._zero)
            count = int(groups.max()) + 1
            sums = self._of_axis(name, g, axis, groups, count) if count else []
            kept = [k for k, most in enumerate(sums) if most <= self._zero * largest]
            if kept:
                numbers = torch.full((count + 1,), -1)  # the last: of none
                numbers[kept] = torch.arange(len(kept))
                return axis, numbers[groups]
        return 0, torch.full(whole[:1], -1)

    def _whole(self, name: str, g: Tensor) -> tuple[int, ...]:
        return tuple(g.shape if name in self.vectors else self._shards.piece(name, g).whole)

    def _profile(self, name: str, g: Tensor, axis: int) -> Tensor:
        """Slopes along an axis, added up over a few places around it, or all where those are 0."""
        cut = self._cut(name, g)
        places = g.reshape(math.prod(g.shape[:axis]), g.shape[axis], math.prod(g.shape[axis + 1 :]))
        after, around = places.shape[2], len(places) * places.shape[2]
        some = torch.linspace(0, around - 1, FEW if around else 0).long().to(g.device)
        few = places[some // max(after, 1), :, some % max(after, 1)]
        weights = torch.linspace(1.0, 2.0, len(few), dtype=torch.float64).to(g.device)
        found = self._along(name, g, axis, cut, weights @ few.double())
        if bool(found.any()):
            return found
        weights = torch.linspace(1.0, 2.0, after, dtype=torch.float64).to(g.device)
        return self._along(name, g, axis, cut, (places.double() @ weights).sum(0))

    def _cut(self, name: str, g: Tensor) -> int | None:
        """The axis that pieces of a tensor are cut along; a vector is here as a whole."""
        return None if name in self.vectors else self._shards.piece(name, g).dim

    def _along(self, name: str, g: Tensor, axis: int, cut: int | None, own: Tensor) -> Tensor:
        """What shards have along an axis, put together."""
        if cut is None:
            return own
        if cut != axis:
            return self._shards.total(own)
        piece = self._shards.piece(name, g)
        return embedded(
            own, Piece(piece.whole[axis : axis + 1], 0, piece.start, piece.stop), self._shards
        )

    def _of_axis(self, name: str, g: Tensor, axis: int, groups: Tensor, count: int) -> list[float]:
        """The largest sum over an axis of each group."""
        cut = self._cut(name, g)
        if cut == axis:
            piece = self._shards.piece(name, g)
            groups = groups[piece.start : piece.stop]
        into = torch.where(groups < 0, count, groups).to(g.device)
        slots = *g.shape[:axis], count + 1, *g.shape[axis + 1 :]
        sums = g.new_zeros(slots, dtype=torch.float64).index_add_(axis, into, g.double())
        if cut == axis:
            sums = self._shards.total(sums)
        own = [_largest(of_one) for of_one in sums.unbind(axis)[:count]]
        return own if cut in (None, axis) else self._most(own, {name: g})


def _sizes(g: Tensor) -> Iterator[Tensor]:
    """Slopes at indices of the first axis, and of the last, 0 where there is none: (length,)."""
    for rows in (g.flatten(1), g.flatten(0, -2).mT):
        few = rows[:, :FEW].abs().amax(1)  # a few entries of each say enough most often
        silent = few == 0
        yield torch.where(silent, rows.abs().amax(1), few) if bool(silent.any()) else few


def _largest(tensor: Tensor) -> float:
    if not tensor.numel():
        return 0.0
    low, high = tensor.aminmax()
    return max(float(high), -float(low))
