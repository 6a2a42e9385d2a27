"""Held: what this process has of groups of tensors, and the slabs that these come in.

Tensors of equal shape lie side by side, and one that is large comes in stretches of rows. What
others hold of a tensor is no different from rows that come in another slab: sums over slabs are
sums over everything once they are added up over the processes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.world.shards import ALONE, Piece, Shards, regroup, stretch_of

Parameters = Mapping[str, Tensor]
Given = Sequence[Parameters | None]  # at several points; None for zero
CACHED = 2**18  # entries of one slab at one point, on a CPU
LAUNCHED = 2**22  # elsewhere: few launches count more


@dataclass(frozen=True, kw_only=True)
class Slab:
    """Rows of the tensors of one group; a tensor without axes has one row."""

    number: int  # of the group
    first: int  # row
    rows: int
    length: int  # all rows, wherever they are held
    names: list[str]
    shape: tuple[int, ...]  # (tensors, rows, everything else)
    held: int = 0  # first row of what is held here
    columns: tuple[int, int] | None = None  # where all rows stay together: first one, and how many
    again: bool = False  # whether another group has these tensors, too

    def of(self, tensor: Tensor) -> Tensor:
        """The part of one tensor, or of what is held of it here."""
        if self.columns is not None:
            return tensor.reshape(self.length, -1).narrow(1, *self.columns)
        if tensor.dim() and self.rows < len(tensor):
            return tensor.narrow(0, self.first - self.held, self.rows)
        return tensor if tensor.dim() else tensor.reshape(1)


@dataclass(kw_only=True)
class Held:
    """What is held here of the tensors of one group: rows, or all rows of some columns."""

    given: int | None  # axis along which the tensors come cut
    standing: bool = False  # whether all rows stay together
    start: int = 0  # first row held, or column
    stop: int
    together: int = 1  # rows that are never cut apart, counted from the first

    @property
    def moves(self) -> bool:
        """Whether the tensors are cut another way than they come."""
        return self.given is not None and self.standing == (self.given == 0)

    def slabs(self, number: int, shape: torch.Size, names: list[str], most: int) -> Iterator[Slab]:
        """All parts, one after the other, of up to so many entries where that can be."""
        length, *rest = shape or (1,)
        row, many = max(math.prod(rest), 1), len(names)
        if self.standing:
            step = max(most // (length * many), 1)
            for first in range(self.start, self.stop, step):
                count = min(step, self.stop - first)
                yield Slab(
                    number=number,
                    first=0,
                    rows=length,
                    length=length,
                    names=names,
                    shape=(many, length, count),
                    columns=(first - self.start, count),
                    again=True,
                )
            return
        whole = many > 1 or (self.stop - self.start) * row <= most
        step = length if whole else max(most // row // self.together, 1) * self.together
        for first in range(self.start, self.stop, max(step, 1)):
            rows = min(step, self.stop - first)
            yield Slab(
                number=number,
                first=first,
                rows=rows,
                length=length,
                names=names,
                shape=(many, rows, *rest),
                held=self.start,
            )


class StackLayout:
    """Which tensors lie in which group, and the slabs that they come in.

    Args:
        names: of the tensors.
        like: tensors of their shapes, or of those of what is held here.
        shards: who holds the rest.
    """

    def __init__(self, names: Iterable[str], like: Parameters, shards: Shards = ALONE) -> None:
        alike: dict[tuple[torch.Size, int | None], list[str]] = {}
        self.device = torch.device("cpu")
        for name in names:
            piece = shards.piece(name, like[name])
            alike.setdefault((piece.whole, piece.dim), []).append(name)
            self.device = like[name].device
        self.shards = shards
        self.dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self._most = CACHED if self.device.type == "cpu" else LAUNCHED
        self.groups: list[tuple[torch.Size, list[str]]] = []
        self._held: list[Held] = []
        self._standing: dict[int, int] = {}  # the same tensors with their rows together
        for (shape, dim), members in alike.items():
            some = max(1, self._most // max(shape.numel() // shards.ranks, 1))
            for i in range(0, len(members), some):
                own = members[i : i + some]
                self.groups.append((shape, own))
                length = shape[0] if shape else 1
                start, stop = 0, length if shards.counts(own[0]) else 0
                if dim is not None:
                    start, stop = stretch_of(length, shards.rank, shards.ranks)
                self._held.append(Held(given=dim, start=start, stop=stop))
        self.place = {
            name: (number, index)
            for number, (_, members) in enumerate(self.groups)
            for index, name in enumerate(members)
        }

    def rows_stay(self, number: int, rows: int, apart: bool = False) -> int:
        """So many rows of a group, counted from the first, are never cut apart here.

        Args:
            number: of the group.
            rows: that stay together.
            apart: whether others may hold some of them all the same.

        Returns:
            The group of these tensors in which nobody cuts them apart.
        """
        held, length = self._held[number], _rows(self.groups[number][0])
        chunk = self.shards.chunk(length)
        if not apart and held.given is not None and chunk < length and chunk % max(rows, 1):
            return self._of_columns(number)
        held.together = math.lcm(held.together, max(rows, 1))
        return number

    def _of_columns(self, number: int) -> int:
        """The group of the same tensors in which everyone has all rows, of some columns."""
        if number not in self._standing:
            shape, names = self.groups[number]
            given, shards = self._held[number].given, self.shards
            columns = math.prod(shape[1:])
            start, stop = stretch_of(columns, shards.rank, shards.ranks)
            if given:
                start, stop = 0, columns // shape[given] * self._stretch(shape[given])
            self._standing[number] = len(self.groups)
            self.groups.append((shape, names))
            self._held.append(Held(given=given, standing=True, start=start, stop=stop))
        return self._standing[number]

    def _stretch(self, length: int) -> int:
        start, stop = stretch_of(length, self.shards.rank, self.shards.ranks)
        return stop - start

    def slabs(self, number: int) -> list[Slab]:
        """What is held here of one group, part by part."""
        return [*self._held[number].slabs(number, *self.groups[number], self._most)]

    def pieces(self) -> Iterator[Slab]:
        """All slabs, one after the other."""
        for number in range(len(self.groups)):
            yield from self.slabs(number)

    def given(self, number: int, points: Given) -> Given:
        """The tensors of a group at all points, cut as their slabs are: by exchange if need be.

        All that hold shards call this in the same order.
        """
        held, (shape, names) = self._held[number], self.groups[number]
        if not held.moves:
            return points
        return [t and self._moved(held, shape, names, t) for t in points]

    def _moved(
        self, held: Held, shape: torch.Size, names: list[str], tensors: Parameters
    ) -> Parameters:
        many, given = len(names), held.given
        own = torch.stack([tensors[n] for n in names])
        assert given is not None, "only what is cut is cut another way"
        start, stop = stretch_of(shape[given], self.shards.rank, self.shards.ranks)
        if held.standing:
            columns = math.prod(shape[1:])
            whole = torch.Size([many, shape[0], columns])
            own = own.reshape(many, stop - start, columns)
            made, _ = regroup(own, Piece(whole, 1, start, stop), 2, self.shards)
        else:
            whole = torch.Size([many, *shape])
            made, _ = regroup(own, Piece(whole, given + 1, start, stop), 1, self.shards)
        return dict(zip(names, made.unbind(), strict=True))


def _rows(shape: torch.Size) -> int:
    """Rows of a tensor of this shape."""
    return shape[0] if shape else 1
