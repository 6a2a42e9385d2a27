"""Grams: rows with rows of the tensors that general linear and rotary symmetries mix."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from eqtoolbox.weights.charges.moments import Moments, Owners, each
from eqtoolbox.weights.charges.stack import Layout, Pair, Points, Stack
from eqtoolbox.weights.families.general_linear import GeneralLinear, MatrixLeg, MatrixSymmetry

Part = tuple[int, int, int, tuple[int, ...]]  # stack, axis, repetition, positions along the axis


class Grams(Moments):
    """Matrix symmetries of one class and one size d: X Y^T of every leg, (pairs, legs, d, d).

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
        views = {part: views[part] for part in sorted(views)}
        self._views = [(part[0], view) for part, view in views.items()]
        self.blocks = start
        where, signs = [], []
        owners: list[tuple[str, int]] = []
        for part in views:
            legs = rows[part]
            like = next(iter(legs.values()))[0]
            for index, name in enumerate(layout.groups[part[0]][1]):
                block, sign = legs.get(index, (torch.zeros_like(like), 0))
                where.append(block)
                signs.append(torch.full((len(like),), float(sign), dtype=torch.float64))
                owners.append((name, len(like)))
        self._owners: Owners = owners
        self._block, self._sign = torch.cat(where), torch.cat(signs)

    def rows(self, stack: Stack, points: Points, pairs: Sequence[Pair]) -> list[Tensor]:
        found = []
        for number, view in self._views:
            if number == stack.number:
                given = [view(whole) for whole in stack.whole]
                found.append(torch.stack([torch.bmm(given[a], given[b].mT) for a, b in pairs]))
        return found

    @property
    def units(self) -> Tensor:
        """The blocks: entries of a matrix depend on the basis of the axis."""
        return torch.arange(self.blocks).repeat_interleave(self.charges // self.blocks)

    def pair(self, moments: Tensor) -> Tensor:
        total = self._summed(moments, self._block, self.blocks)
        if not self.general:
            return total.diagonal(dim1=-2, dim2=-1).sum(-1)
        return self._upper(total + total.mT)

    def scales(self, moments: Tensor, points: Points) -> Tensor:
        lengths = moments[0].diagonal(dim1=-2, dim2=-1).clamp_min(0)
        if not self.general:
            return 0.5 * self._absolute(lengths.sum(-1))
        roots = lengths.sqrt()
        return self._upper(self._absolute(roots[:, :, None] * roots[:, None, :])[None])[0]

    def slopes(self, moments: Tensor, points: Points, pair: Pair) -> Tensor:
        """A multiplies legs of sign + and -A^T those of sign -; gram_ij pairs row i of a."""
        plus, minus = self._sides(moments[:1])
        if self.general:
            return (plus.mT + minus).reshape(-1)
        trace = (plus + minus).diagonal(dim1=1, dim2=2).sum(-1)
        turn = plus - minus
        return self._paired(trace, turn[:, 0, 1] - turn[:, 1, 0])

    def lengths(self, moments: Tensor, points: Points) -> Tensor:
        squares = moments[:1].diagonal(dim1=-2, dim2=-1).clamp_min(0)
        plus, minus = (side.abs() for side in self._sides(squares))
        if self.general:  # A_ij reads row j of a + leg, row i of a - leg
            return (plus[:, None, :] + minus[:, :, None]).reshape(-1).sqrt()
        sizes = (plus + minus).sum(-1).sqrt()
        return self._paired(sizes, sizes)

    def decay(self, moments: Tensor, points: Points, weights: Mapping[str, float]) -> Tensor:
        return self.pair(moments * each(weights, self._owners, moments)[:, None, None])[0]

    def _sides(self, legs: Tensor) -> tuple[Tensor, Tensor]:
        """Signed sums over the legs of sign + and over those of sign -, of every block."""
        count = self.blocks
        where = torch.where(self._sign > 0, self._block, self._block + count)
        both = self._summed(legs, where, 2 * count)[0]
        return both[:count], both[count:]

    def _paired(self, scalings: Tensor, turns: Tensor) -> Tensor:
        """Generators of rotary symmetries: of each member all scalings, then all turns."""
        counts = [m.dimension // 2 for m in self.members]
        parts = zip(torch.split(scalings, counts), torch.split(turns, counts), strict=True)
        return torch.cat([t for pair in parts for t in pair])

    def _summed(self, legs: Tensor, where: Tensor, count: int) -> Tensor:
        """Signed sum over the legs that go to each place: (pairs, count, ...)."""
        many, device = len(legs), legs.device
        signed = legs * self._sign.to(device).reshape(-1, *[1] * (legs.dim() - 2))
        places = torch.cat([where.to(device) + k * count for k in range(many)])
        total = legs.new_zeros(many * count, *legs.shape[2:])
        total.index_add_(0, places, signed.flatten(0, 1))
        return total.view(many, count, *legs.shape[2:])

    def _absolute(self, legs: Tensor) -> Tensor:
        """Sum over all legs of each block, whatever their sign."""
        taken = legs * self._sign.abs().to(legs.device).reshape(-1, *[1] * (legs.dim() - 1))
        total = legs.new_zeros(self.blocks, *legs.shape[1:])
        return total.index_add_(0, self._block.to(legs.device), taken)

    def _upper(self, symmetric: Tensor) -> Tensor:
        """Along orthonormal symmetric matrices, see `GeneralLinear`: (pairs, charges)."""
        i, j = torch.triu_indices(self.size, self.size, device=symmetric.device)
        weights = torch.where(i == j, 0.5, 0.5**0.5).to(symmetric)
        return (symmetric[:, :, i, j] * weights).flatten(1)


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
