"""A stack: a piece of some tensors at several points, in float64, so that one operation serves all.

Tensors of equal shape lie side by side, and one that is large comes in stretches of rows. Pieces
follow each other through the same memory, which stays in the cache of a CPU: products and sums are
those of float64 copies that never exist as a whole.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
Pair = tuple[int, int]  # two points of a stack
CACHED = 2**18  # entries of one piece at one point, on a CPU
LAUNCHED = 2**22  # elsewhere: few launches count more


class Owned(dict[str, Tensor]):
    """Tensors that whoever gets them may write over, and hand back as what they made."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows of the tensors of one group; a tensor without axes has one row."""

    number: int  # of the group
    first: int  # row
    rows: int
    length: int  # all rows
    names: list[str]
    shape: tuple[int, ...]  # (tensors, rows, everything else)

    def of(self, tensor: Tensor) -> Tensor:
        """The rows of one tensor."""
        if self.rows < self.length:
            return tensor.narrow(0, self.first, self.rows)
        return tensor if tensor.dim() else tensor.reshape(1)


class StackLayout:
    """Which tensors lie in which group, and the pieces that they come in."""

    def __init__(self, names: Iterable[str], like: Parameters) -> None:
        shapes: dict[torch.Size, list[str]] = {}
        self.device = torch.device("cpu")
        for name in names:
            shapes.setdefault(like[name].shape, []).append(name)
            self.device = like[name].device
        self.dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self._most = CACHED if self.device.type == "cpu" else LAUNCHED
        self.groups: list[tuple[torch.Size, list[str]]] = []
        for shape, members in shapes.items():
            some = max(1, self._most // max(shape.numel(), 1))
            self.groups += [(shape, members[i : i + some]) for i in range(0, len(members), some)]
        self.place = {
            name: (number, index)
            for number, (_, members) in enumerate(self.groups)
            for index, name in enumerate(members)
        }
        self._together = [1] * len(self.groups)

    def rows_stay(self, number: int, rows: int) -> None:
        """So many rows of a group, counted from the first, are never cut apart."""
        self._together[number] = math.lcm(self._together[number], max(rows, 1))

    def pieces(self) -> Iterator[Piece]:
        """All pieces, one after the other."""
        for number, (shape, names) in enumerate(self.groups):
            length, *rest = shape or (1,)
            row, together = max(math.prod(rest), 1), self._together[number]
            whole = len(names) > 1 or length * row <= self._most
            step = length if whole else max(self._most // row // together, 1) * together
            for first in range(0, length, max(step, 1)):
                rows = min(step, length - first)
                yield Piece(
                    number=number,
                    first=first,
                    rows=rows,
                    length=length,
                    names=names,
                    shape=(len(names), rows, *rest),
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Points of parameter space; the last may be given by where it leads from the first."""

    given: tuple[Parameters | None, ...]  # None for zero
    update: bool = False  # whether the last one counts as its difference to the first

    def of(self, point: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Single tensors in float64."""
        tensors, first = self.given[point], self.given[0]
        assert first is not None, "the first point is where everything starts"
        if tensors is None:
            return {n: torch.zeros_like(_wide(first[n])) for n in names}
        if self.update and point == len(self.given) - 1:
            return {n: _wide(tensors[n]) - _wide(first[n]) for n in names}
        return {n: _wide(tensors[n]) for n in names}

    def stacked(self, point: int, names: Sequence[str]) -> Tensor:
        """Tensors of one shape in float64: (tensors, *shape)."""
        tensors = self.given[point]
        if tensors is None or (self.update and point == len(self.given) - 1):
            return _together([*self.of(point, names).values()])
        home = tensors[names[0]].device
        return _wide(_together([tensors[n].to(home) for n in names]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """One piece at all points, until products are asked for: they take the memory of points."""

    piece: Piece
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
    order, pieces = _order(pairs, len(points.given)), list(layout.pieces())
    largest = max((math.prod(piece.shape) for piece in pieces), default=0)
    memory = torch.empty(len(order), largest, dtype=layout.dtype, device=layout.device)
    for piece in pieces:
        made = memory[:, : math.prod(piece.shape)].view(-1, *piece.shape)
        each = [made[order.index(point)] for point in range(len(points.given))]
        into: list[Tensor] = []
        given: list[Tensor] = []
        for at, tensors in zip(each, points.given, strict=True):
            if tensors is None:
                at.zero_()
            else:
                into += at.unbind()
                given += [piece.of(tensors[n]) for n in piece.names]
        torch._foreach_copy_(into, given)
        if points.update:
            each[-1].sub_(each[0])
        yield Stack(piece=piece, each=each, room=made[: len(pairs)])


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
    """Every piece in memory of its own: differentiable by the points."""
    for piece in layout.pieces():
        rows = [t and {n: piece.of(t[n]) for n in piece.names} for t in points.given]
        here = Points(given=tuple(rows), update=points.update)
        each = [_together([*here.of(i, piece.names).values()]) for i in range(len(rows))]
        yield Stack(piece=piece, each=each)


def _together(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([*tensors]) if len(tensors) > 1 else tensors[0][None]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.device.type == "mps" else tensor.double()
