"""Matrices in stacks: the blocks of an axis, seen without a copy, and signed sums over them."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from eqtoolbox.weights.forms.held import CACHED
from eqtoolbox.weights.forms.stack import Stack

SMALL = 2**13  # entries of a tensor that are copied sooner than seen by themselves


def stretch(positions: Tensor) -> tuple[int, int] | None:
    """Where indices begin and end that lie side by side, in order; None if they don't.

    Example:
        >>> stretch(torch.tensor([[2, 3], [4, 5]])), stretch(torch.tensor([1, 0]))
        ((2, 6), None)
    """
    flat = positions.reshape(-1)
    first = int(flat[0])
    side_by_side = torch.equal(flat, torch.arange(first, first + len(flat)))
    return (first, first + len(flat)) if side_by_side else None


@dataclass(frozen=True, kw_only=True, eq=False)
class MatrixPart:
    """Blocks along an axis of the tensors of one shape, and what they are legs of."""

    number: int  # of the shape
    axis: int
    positions: Tensor  # (blocks, copies, size)
    again: int  # how many parts before take the same entries
    legs: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # by tensor

    def of(self, index: int) -> tuple[Tensor, Tensor]:
        """Which matrix mixes each block of a tensor, and its sign; 0 where none does."""
        zero = torch.zeros(len(self.positions), dtype=torch.float64)
        return self.legs.get(index, (zero.long(), zero))

    def then(self, other: "MatrixPart") -> "MatrixPart":
        """Both together."""
        legs = {
            index: (torch.cat([a, b]), torch.cat([s, t]))
            for index in {**self.legs, **other.legs}
            for (a, s), (b, t) in [(self.of(index), other.of(index))]
        }
        return replace(self, positions=torch.cat([self.positions, other.positions]), legs=legs)


def joined(parts: Iterable[MatrixPart]) -> list[MatrixPart]:
    """In order, and those that lie side by side as one: queries, keys and values of one weight."""
    found: list[MatrixPart] = []
    for part in sorted(parts, key=lambda p: (p.number, p.axis, p.again, int(p.positions.min()))):
        last = found[-1] if found else None
        if last is not None and _side_by_side(last, part):
            found[-1] = last.then(part)
        else:
            found.append(part)
    return found


def _side_by_side(one: MatrixPart, other: MatrixPart) -> bool:
    places = stretch(one.positions), stretch(other.positions)
    alike = [(p.number, p.axis, p.again, p.positions.shape[1:]) for p in (one, other)]
    if places[0] is None or places[1] is None or alike[0] != alike[1]:
        return False
    return places[0][1] == places[1][0]


class SignedSums:
    """Which block each leg is of, and its sign: a leg here is one block of one tensor."""

    def __init__(self, block: Tensor, sign: Tensor, blocks: int) -> None:
        self._block, self._sign, self._blocks = block, sign, blocks

    def total(self, legs: Tensor) -> Tensor:
        """SignedSums sum over the legs of every block: (pairs, blocks, ...)."""
        return self._summed(legs, self._block, self._blocks)

    def sides(self, legs: Tensor) -> tuple[Tensor, Tensor]:
        """SignedSums sums over the legs of sign + and over those of sign -: (blocks, ...) each."""
        count = self._blocks
        where = torch.where(self._sign > 0, self._block, self._block + count)
        both = self._summed(legs[:1], where, 2 * count)[0]
        return both[:count], both[count:]

    def outer(self, rows: Tensor) -> Tensor:
        """The sum of x x^T over all legs of every block, of vectors (legs, size): (blocks, ...)."""
        rows = rows * self._sign.abs().to(rows)[:, None]
        total = rows.new_zeros(self._blocks, rows.shape[1], rows.shape[1])
        parts = self._parts(len(rows), rows.shape[1] ** 2)
        for where, own in zip(parts, torch.split(rows, len(parts[0])), strict=True):
            block = self._block[where].to(rows.device)
            total.index_add_(0, block, own[:, :, None] * own[:, None, :])
        return total

    def _summed(self, legs: Tensor, where: Tensor, count: int) -> Tensor:
        total = legs.new_zeros(len(legs), count, *legs.shape[2:])
        parts = self._parts(legs.shape[1], legs[:, :1].numel())
        for k, own in zip(parts, torch.split(legs, len(parts[0]), 1), strict=True):
            signed = own * self._spread(self._sign[k], own)
            total = total.index_add_(1, where[k].to(legs.device), signed)
        return total

    @staticmethod
    def _parts(count: int, size: int) -> list[Tensor]:
        """Legs of so many entries, as many at a time as the cache takes."""
        return [*torch.split(torch.arange(count), max(CACHED // max(size, 1), 1))]

    @staticmethod
    def _spread(sign: Tensor, legs: Tensor) -> Tensor:
        return sign.to(legs).reshape(-1, *[1] * (legs.dim() - 2))


class MatrixView:
    """(legs, d, everything else) of a stack, without a copy where memory allows."""

    def __init__(self, number: int, axis: int, positions: Tensor, rows: int) -> None:
        self.number, self._axis = number, axis
        self._stretch = stretch(positions)
        self._scattered = positions.reshape(-1) if self._stretch is None else None
        self.blocks, self._copies, self._size = positions.shape
        self._block = self._copies * self._size  # indices of the axis
        self.rows_together = 1  # rows of the tensors that may not be cut apart
        if axis == 0:
            even = self._stretch is not None and self._stretch[0] % self._block == 0
            self.rows_together = self._block if even else rows

    def parts(self, stack: Stack) -> Iterator[tuple[slice, slice]]:
        """Which of a stack's tensors can be seen at once, and which of the legs theirs are."""
        piece, own, many = stack.piece, self._stretch, stack.piece.shape[0]
        if piece.rows < piece.length and self._axis == 0 and own is not None:
            ends = (piece.first - own[0], piece.first + piece.rows - own[0])
            first, last = (min(max(end, 0) // self._block, self.blocks) for end in ends)
            for tensor in range(many if first < last else 0):
                legs = slice(tensor * self.blocks + first, tensor * self.blocks + last)
                yield slice(tensor, tensor + 1), legs
            return
        together = self._axis == 0 and own == (0, piece.length)  # without a copy, that is
        step = many if together or math.prod(piece.shape) <= many * SMALL else 1
        for tensor in range(0, many, step):
            yield (
                slice(tensor, tensor + step),
                slice(tensor * self.blocks, (tensor + step) * self.blocks),
            )

    def of(self, stack: Stack, point: int, tensors: slice) -> Tensor:
        """The matrices of these legs at one point."""
        rows = stack.each[point][tensors].movedim(self._axis + 1, 1)
        if self._scattered is not None:
            self._scattered = self._scattered.to(rows.device)  # there once
            rows = rows[:, self._scattered]
        elif self._stretch is not None:
            before = stack.piece.first if self._axis == 0 else 0
            first, last = (max(end - before, 0) for end in self._stretch)
            rows = rows[:, first:last]
        parts = rows.reshape(len(rows), -1, self._copies, self._size, rows[0, 0].numel())
        if self._copies > 1:
            parts = parts.movedim(2, 3)
        return parts.reshape(parts.shape[0] * parts.shape[1], self._size, -1)
