"""A stack: a slab of some tensors at several points, in float64, so that one operation serves all.

Slabs follow each other through the same memory, which stays in the cache of a CPU: products and
sums are those of float64 copies that never exist as a whole.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eqtoolbox.weights.forms.held import Parameters as Parameters
from eqtoolbox.weights.forms.held import Slab, StackLayout
from eqtoolbox.world.shards import ALONE, Shards

Pair = tuple[int, int]  # two points of a stack


class Owned(dict[str, Tensor]):
    """Tensors that whoever gets them may write over, and hand back as what they made."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Points of parameter space; the last may be given by where it leads from the first."""

    given: tuple[Parameters | None, ...]  # None for zero
    update: bool = False  # whether the last one counts as its difference to the first
    sizes: bool = False  # whether entries count by their absolute values
    shards: Shards = ALONE  # who holds what else there is of them
    _whole: dict[tuple[int, str], Tensor] = field(default_factory=dict, init=False)

    def of(self, point: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Single tensors in float64."""
        tensors, first = self.given[point], self.given[0]
        assert first is not None, "the first point is where everything starts"
        if tensors is None:
            return {n: torch.zeros_like(_wide(first[n])) for n in names}
        if self.update and point == len(self.given) - 1:
            return {n: _wide(tensors[n]) - _wide(first[n]) for n in names}
        return {n: _wide(tensors[n]) for n in names}

    def whole(self, point: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Small tensors in float64 with what others hold of them; those asked for before at once.

        All that hold shards ask for the same.
        """
        wanted = list(dict.fromkeys(names))
        fresh = [name for name in wanted if (point, name) not in self._whole]
        if fresh:
            made = self.shards.whole(self.of(point, fresh))
            self._whole.update({(point, name): made[name] for name in fresh})
        return {name: self._whole[point, name] for name in wanted}


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """One piece at all points, until products are asked for: they take the memory of points."""

    piece: Slab
    each: Sequence[Tensor]  # one a point, (tensors, rows, ...)
    room: Tensor | None = None  # of products, (pairs, tensors, rows, ...); None: differentiable
    _made: dict[tuple[Pair, ...], Tensor] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Of the group."""
        return self.piece.number

    def products(self, pairs: Sequence[Pair]) -> Tensor:
        """Entry by entry, of every pair of points: (pairs, tensors, rows, ...)."""
        key, each = tuple(pairs), self.each
        if key not in self._made:
            if self.room is None and len(pairs) == 1:  # stacked it would be made twice
                self._made[key] = (each[pairs[0][0]] * each[pairs[0][1]])[None]
            elif self.room is None:
                self._made[key] = torch.stack([each[a] * each[b] for a, b in pairs])
            else:
                for into, (a, b) in zip(self.room, pairs, strict=True):
                    torch.mul(each[a], each[b], out=into)
                self._made[key] = self.room
        return self._made[key]


def stacks(layout: StackLayout, points: Points, pairs: Sequence[Pair]) -> Iterator[Stack]:
    """Every piece through the same memory, which is given back at the end.

    Args:
        layout: of the tensors.
        points: that they are at.
        pairs: of points, whose products are asked for.
    """
    order = _order(pairs, len(points.given))
    largest = max((math.prod(slab.shape) for slab in layout.pieces()), default=0)
    memory = torch.empty(len(order), largest, dtype=layout.dtype, device=layout.device)
    for number in range(len(layout.groups)):
        held = layout.given(number, points.given)
        for slab in layout.slabs(number):
            made = memory[:, : math.prod(slab.shape)].view(-1, *slab.shape)
            each = [made[order.index(point)] for point in range(len(held))]
            _fill(each, held, slab)
            if points.update:
                each[-1].sub_(each[0])
            if points.sizes:
                torch._foreach_abs_(each)
            yield Stack(piece=slab, each=each, room=made[: len(pairs)])


def _fill(each: Sequence[Tensor], held: Sequence[Parameters | None], slab: Slab) -> None:
    """Every point's part of a slab into its place."""
    into: list[Tensor] = []
    given: list[Tensor] = []
    for at, tensors in zip(each, held, strict=True):
        if tensors is None:
            at.zero_()
        else:
            into += at.unbind()
            given += [slab.of(tensors[n]) for n in slab.names]
    torch._foreach_copy_(into, given)


def _order(pairs: Sequence[Pair], points: int) -> list[int | None]:
    """Which point lies where in memory: in each pair's place one that no later pair needs.

    Example:
        >>> _order([(0, 1), (0, 2), (2, 2)], 3)
        [1, 0, 2]
    """
    order: list[int | None] = []
    for k, pair in enumerate(pairs):
        needed = {*order, *(p for later in pairs[k + 1 :] for p in later)}
        order.append(next((p for p in pair if p not in needed), None))
    return [*order, *(p for p in range(points) if p not in order)]


def fresh(layout: StackLayout, points: Points) -> Iterator[Stack]:
    """Every slab in memory of its own: differentiable by the points."""
    for slab in layout.pieces():
        rows = [t and {n: slab.of(t[n]) for n in slab.names} for t in points.given]
        here = Points(given=tuple(rows), update=points.update)
        each = [_together([*here.of(i, slab.names).values()]) for i in range(len(rows))]
        yield Stack(piece=slab, each=[x.abs() for x in each] if points.sizes else each)


def _together(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([*tensors]) if len(tensors) > 1 else tensors[0][None]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.device.type == "mps" else tensor.double()
