"""Grams: rows with rows of the tensors that general linear and rotary symmetries mix."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from eqtoolbox.symmetry.families.general_linear import GeneralLinear, MatrixLeg, MatrixSymmetry
from eqtoolbox.symmetry.moments import Moments
from eqtoolbox.symmetry.parameter import Parameters
from eqtoolbox.symmetry.stack import Layout, Stack

Part = tuple[int, int, int, tuple[int, ...]]  # stack, axis, repetition, positions along the axis


class Grams(Moments):
    """Matrix symmetries of one class and one size d: X Y^T of every leg, (legs, d, d).

    A leg here is one block of one parameter; all blocks of all legs of all members lie in one
    tensor, which is summed into one matrix per block with the legs' signs.
    """

    def __init__(self, members: Sequence[MatrixSymmetry], layout: Layout) -> None:
        self.members = members
        self.size = members[0].size
        self.general = isinstance(members[0], GeneralLinear)
        views: dict[Part, Callable[[Tensor], Tensor]] = {}
        rows: dict[Part, dict[int, tuple[Tensor, int]]] = {}
        start = 0
        for m in members:
            for leg in m.legs:
                number, index = layout.place[leg.name]
                positions = tuple(leg.positions.reshape(-1).tolist())
                part, again = (number, leg.axis, 0, positions), 0
                while index in rows.get(part, {}):  # the same part of a tensor once more
                    again += 1
                    part = (number, leg.axis, again, positions)
                views.setdefault(part, _view(leg))
                blocks = torch.arange(start, start + m.blocks)
                rows.setdefault(part, {})[index] = blocks, leg.sign
            start += m.blocks
        self._views = [(part[0], view) for part, view in views.items()]
        self._blocks = start
        where, signs = [], []
        self._owners: list[tuple[str, int]] = []
        for part, legs in rows.items():
            like = next(iter(legs.values()))[0]
            for index, name in enumerate(layout.groups[part[0]][1]):
                block, sign = legs.get(index, (torch.zeros_like(like), 0))
                where.append(block)
                signs.append(torch.full((len(like),), float(sign), dtype=torch.float64))
                self._owners.append((name, len(like)))
        self._block, self._sign = torch.cat(where), torch.cat(signs)
        self._upper = torch.triu_indices(self.size, self.size)
        self._memory: dict[torch.dtype, Tensor] = {}

    def of(self, a: Stack, b: Stack, exact: bool = False) -> Tensor:
        like = a.whole[self._views[0][0]]
        dtype = torch.float64 if exact else like.dtype
        kept = self._memory.get(dtype)
        if kept is None or kept.device != like.device:
            shape = len(self._sign), self.size, self.size
            kept = self._memory[dtype] = torch.empty(shape, dtype=dtype, device=like.device)
        at = 0
        for number, view in self._views:
            x, y = view(a.whole[number]).to(dtype), view(b.whole[number]).to(dtype)
            torch.bmm(x, y.mT, out=kept[at : at + len(x)])
            at += len(x)
        return kept

    def pair(self, moments: Tensor) -> Tensor:
        total = self._total(moments)
        if not self.general:
            return total.diagonal(dim1=1, dim2=2).sum(-1).double()
        both = total + total.mT
        both.diagonal(dim1=1, dim2=2).mul_(0.5)
        return self._halves(both)

    def slopes(self, moments: Tensor, a: Stack, b: Stack) -> Tensor:
        """A multiplies legs of sign + and -A^T those of sign -; gram_ij pairs row i of a."""
        plus, minus = self._sides(moments)
        if self.general:
            return (plus.mT + minus).reshape(-1).double()
        trace = (plus + minus).diagonal(dim1=1, dim2=2).sum(-1)
        turn = plus - minus
        return self._paired(trace, turn[:, 0, 1] - turn[:, 1, 0])

    def lengths(self, moments: Tensor, params: Parameters) -> Tensor:
        squares = moments.diagonal(dim1=1, dim2=2).clamp_min(0)
        plus, minus = (side.abs() for side in self._sides(squares))
        if self.general:  # A_ij reads row j of a + leg, row i of a - leg
            return (plus[:, None, :] + minus[:, :, None]).reshape(-1).double().sqrt()
        sizes = (plus + minus).sum(-1).sqrt()
        return self._paired(sizes, sizes)

    def decay(self, moments: Tensor, params: Stack, weights: Mapping[str, float]) -> Tensor:
        each = torch.tensor([weights.get(n, 0.0) for n, _ in self._owners], dtype=moments.dtype)
        counts = torch.tensor([count for _, count in self._owners])
        return self.pair(moments * each.repeat_interleave(counts).to(moments)[:, None, None])

    def _paired(self, scalings: Tensor, turns: Tensor) -> Tensor:
        """Generators of rotary symmetries: of each member all scalings, then all turns."""
        counts = [m.dimension // 2 for m in self.members]
        parts = zip(torch.split(scalings, counts), torch.split(turns, counts), strict=True)
        return torch.cat([t for pair in parts for t in pair]).double()

    def _sides(self, legs: Tensor) -> tuple[Tensor, Tensor]:
        """Signed sums over the legs of sign + and over those of sign -, of every block."""
        count = self._blocks
        where = torch.where(self._sign > 0, self._block, self._block + count)
        both = self._summed(legs, where, 2 * count)
        return both[:count], both[count:]

    def _total(self, legs: Tensor) -> Tensor:
        """Signed sum over all legs of every block."""
        return self._summed(legs, self._block, self._blocks)

    def _summed(self, legs: Tensor, where: Tensor, count: int) -> Tensor:
        signed = legs * self._sign.to(legs).reshape(-1, *[1] * (legs.dim() - 1))
        total = legs.new_zeros(count, *legs.shape[1:])
        return total.index_add_(0, where.to(legs.device), signed)

    def _halves(self, symmetric: Tensor) -> Tensor:
        self._upper = self._upper.to(symmetric.device)
        return symmetric[:, self._upper[0], self._upper[1]].reshape(-1).double()


def _view(leg: MatrixLeg) -> Callable[[Tensor], Tensor]:
    """(stacked * blocks, d, everything else) of a stack, without a copy where memory allows."""
    blocks, copies, size = leg.positions.shape
    flat = leg.positions.reshape(-1)
    start, length = int(flat[0]), len(flat)
    side_by_side = torch.equal(flat, torch.arange(start, start + length))

    def view(stack: Tensor) -> Tensor:
        rows = stack.movedim(leg.axis + 1, 1)
        rows = rows.narrow(1, start, length) if side_by_side else rows[:, flat.to(stack.device)]
        parts = rows.reshape(len(stack), blocks, copies, size, -1)
        if copies > 1:
            return parts.movedim(2, 3).reshape(len(stack) * blocks, size, -1)
        return parts.reshape(len(stack) * blocks, size, -1)

    return view
