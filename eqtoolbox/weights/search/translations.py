"""Shifts: translations, compensations and bias shifts, proposed from a trace and from gradients."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from eqtoolbox.weights.families.translation import Translation
from eqtoolbox.weights.forms.linear import Term, column_sums, shift
from eqtoolbox.weights.tracing.trace import Trace, layer_name
from eqtoolbox.world.shards import ALONE, Piece, Shards, embedded

FEW = 8
_ZERO = 1e-9  # gradient sums below this share of the largest entry count as zero
T = TypeVar("T")


class TranslationSearch:
    """Shifts to which the gradient is orthogonal to rounding, while it comes in pieces.

    Tried are: each entry of a vector, all indices of an axis together, and the groups of group
    normalisations. Whether they are symmetries is for the finite check to say.

    Args:
        order: of the parameters, the model's.
        counts: of the groups.
        shards: what of the parameters is held here.
        zero: sums below this share of the largest entry count as zero.
    """

    def __init__(
        self,
        order: Sequence[str],
        counts: Sequence[int],
        shards: Shards = ALONE,
        zero: float = _ZERO,
    ) -> None:
        self.vectors: dict[str, Tensor] = {}  # gradients of one axis, kept
        self.columns: dict[str, Tensor] = {}  # sums over all axes but the last
        self._order, self._counts, self._shards, self._zero = order, counts, shards, zero
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
        return cls(list(trace.parameters), group_counts(trace))

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
        if not bool(g.any()):
            return None
        zero = self._flat(name, g)
        if bool(zero.any()) and g.numel() > 1:
            groups = torch.where(zero, zero.long().cumsum(0) - 1, -1)
            return shift(name, g.shape, 0, groups.cpu(), int(zero.sum()))
        return self._of_groups(name, g, float(g.abs().max()))

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
        whole = g.shape if name in self.vectors else self._shards.piece(name, g).whole
        for axis in range(min(len(whole), 3)):
            for count in self._counts:
                length = whole[axis]
                if length == count or length % count:
                    continue
                if self._vanish(name, g, axis, count, self._zero * largest):
                    groups = torch.arange(count).repeat_interleave(length // count)
                    return shift(name, whole, axis, groups, count)
        return None

    def _vanish(self, name: str, g: Tensor, axis: int, count: int, zero: float) -> bool:
        """Whether the sums over an axis in so many groups do; a few of them say no most often."""
        cut = None if name in self.vectors else self._shards.piece(name, g).dim
        if cut is None and g.dim() > 1:
            some = g.narrow(1 if axis == 0 else 0, 0, 1)
            if _largest(_in_groups(some, axis, count)) > zero:
                return False
        return self._of_axis(name, g, axis, count) <= zero

    def _of_axis(self, name: str, g: Tensor, axis: int, count: int) -> float:
        """The largest sum over an axis in so many groups."""
        piece = self._shards.piece(name, g)
        if (count, axis, g.dim()) == (1, 0, 2):
            return _largest(self.columns[name])
        cut = None if name in self.vectors else piece.dim  # a vector is here as a whole
        if cut != axis:
            own = _largest(_in_groups(g, axis, count))
            return own if cut is None else self._most([own], {name: g})[0]
        into = torch.arange(piece.start, piece.stop, device=g.device)
        slots = *g.shape[:axis], count, *g.shape[axis + 1 :]
        sums = g.new_zeros(slots, dtype=torch.float64)
        sums.index_add_(axis, into * count // piece.whole[axis], g.double())
        return _largest(self._shards.total(sums))


def _sizes(g: Tensor) -> Iterator[Tensor]:
    """Slopes at indices of the first axis, and of the last, 0 where there is none: (length,)."""
    for rows in (g.flatten(1), g.flatten(0, -2).mT):
        few = rows[:, :FEW].abs().amax(1)  # a few entries of each say enough most often
        silent = few == 0
        yield torch.where(silent, rows.abs().amax(1), few) if bool(silent.any()) else few


def group_counts(trace: Trace) -> list[int]:
    """Numbers of groups that an axis may be in, the largest first."""
    counts = {n.args[6] for n in trace.nodes if n.name == "native_group_norm"} | {1}
    return sorted(counts, reverse=True)


def _in_groups(g: Tensor, axis: int, count: int) -> Tensor:
    """Sums over an axis in so many groups."""
    sizes = *g.shape[:axis], count, g.shape[axis] // count, *g.shape[axis + 1 :]
    return g.reshape(sizes).sum(axis + 1, dtype=torch.float64)


def _largest(tensor: Tensor) -> float:
    if not tensor.numel():
        return 0.0
    low, high = tensor.aminmax()
    return max(float(high), -float(low))
