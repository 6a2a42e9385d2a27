"""Grams: rows with rows of the tensors that general linear and rotary symmetries mix."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from eqtoolbox.symmetry.families.general_linear import GeneralLinear, MatrixLeg, MatrixSymmetry
from eqtoolbox.symmetry.moments import HALF, Moments
from eqtoolbox.symmetry.parameter import Parameters


class Grams(Moments):
    """Matrix symmetries of one class and one size d: X Y^T of every leg, (legs, d, d).

    A leg here is one block of one parameter; all blocks of all legs of all members lie in one
    tensor, which is summed into one matrix per block with the legs' signs.
    """

    def __init__(self, members: Sequence[MatrixSymmetry]) -> None:
        super().__init__(members)
        self.size = members[0].size
        self.family = type(members[0])
        self._legs = [leg for m in members for leg in m.legs]
        self._views = [_view(leg) for leg in self._legs]
        blocks, signs, start = [], [], 0
        for m in members:
            for leg in m.legs:
                blocks.append(torch.arange(start, start + m.blocks))
                signs.append(torch.full((m.blocks,), float(leg.sign), dtype=torch.float64))
            start += m.blocks
        self._block, self._sign, self._blocks = torch.cat(blocks), torch.cat(signs), start
        self._upper = torch.triu_indices(self.size, self.size)

    def of(self, a: Parameters, b: Parameters, exact: bool = False) -> Tensor:
        found = []
        for leg, view in zip(self._legs, self._views, strict=True):
            x = view(a[leg.name])
            y = x if b is a else view(b[leg.name])
            if exact:
                x, y = x.double(), y.double()
            elif x.dtype in HALF or y.dtype in HALF:
                x, y = x.float(), y.float()
            found.append(torch.bmm(x, y.mT))
        return torch.cat(found).double() if exact else torch.cat(found)

    def pair(self, moments: Tensor) -> Tensor:
        total = self._summed(moments, self._sign)
        if self.family is not GeneralLinear:
            return total.diagonal(dim1=1, dim2=2).sum(-1).double()
        both = total + total.mT
        both.diagonal(dim1=1, dim2=2).mul_(0.5)
        return self._halves(both)

    def slopes(self, moments: Tensor) -> Tensor:
        """A multiplies legs of sign + and -A^T those of sign -; gram_ij pairs row i of a."""
        plus = self._summed(moments, self._sign.clamp_min(0))
        minus = self._summed(moments, self._sign.clamp_max(0))
        if self.family is GeneralLinear:
            return (plus.mT + minus).reshape(-1).double()
        trace = (plus + minus).diagonal(dim1=1, dim2=2).sum(-1)
        turn = plus - minus
        return self._paired(trace, turn[:, 0, 1] - turn[:, 1, 0])

    def scale(self, moments: Tensor) -> Tensor:
        """Upper bound of |Q_i|: (charges,)."""
        lengths = moments.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()  # of every row
        if self.family is not GeneralLinear:
            return 0.5 * self._summed(lengths.square().sum(-1), self._sign.abs()).double()
        total = self._summed(lengths[:, :, None] * lengths[:, None, :], self._sign.abs())
        total.diagonal(dim1=1, dim2=2).mul_(0.5)
        return self._halves(total)

    def lengths(self, moments: Tensor) -> Tensor:
        """|K_i|: (dimension,)."""
        squares = moments.diagonal(dim1=1, dim2=2).clamp_min(0)
        plus = self._summed(squares, self._sign.clamp_min(0))
        minus = self._summed(squares, self._sign.clamp_max(0)).abs()
        if self.family is GeneralLinear:  # A_ij reads row j of a + leg, row i of a - leg
            return (plus[:, None, :] + minus[:, :, None]).reshape(-1).double().sqrt()
        sizes = (plus + minus).sum(-1).sqrt()
        return self._paired(sizes, sizes)

    def decay(
        self, moments: Tensor, params: Parameters, weights: Mapping[str, float]
    ) -> Tensor:
        each = torch.tensor([weights[leg.name] for leg in self._legs], dtype=torch.float64)
        counts = torch.tensor([leg.positions.shape[0] for leg in self._legs])
        each = each.repeat_interleave(counts).to(moments)
        return self.pair(moments * each[:, None, None])

    def _paired(self, scalings: Tensor, turns: Tensor) -> Tensor:
        """Generators of rotary symmetries: of each member all scalings, then all turns."""
        counts = [m.dimension // 2 for m in self.members]
        parts = zip(scalings.split(counts), turns.split(counts), strict=True)
        return torch.cat([t for pair in parts for t in pair]).double()

    def _summed(self, legs: Tensor, signs: Tensor) -> Tensor:
        """Sum over the legs of every block with these signs."""
        self._block = self._block.to(legs.device)
        signed = legs * signs.to(legs).reshape(-1, *[1] * (legs.dim() - 1))
        return legs.new_zeros(self._blocks, *legs.shape[1:]).index_add_(0, self._block, signed)

    def _halves(self, symmetric: Tensor) -> Tensor:
        self._upper = self._upper.to(symmetric.device)
        return symmetric[:, self._upper[0], self._upper[1]].reshape(-1).double()


def _view(leg: MatrixLeg) -> Callable[[Tensor], Tensor]:
    """(blocks, d, everything else) of a parameter, without a copy where memory allows."""
    blocks, copies, size = leg.positions.shape
    flat = leg.positions.reshape(-1)
    start = int(flat[0])
    if copies == 1 and torch.equal(flat, torch.arange(start, start + len(flat))):

        def view(tensor: Tensor) -> Tensor:
            rows = tensor.movedim(leg.axis, 0).narrow(0, start, len(flat))
            return rows.reshape(len(flat), -1).view(blocks, size, -1)

        return view
    return lambda t: leg.gather(t).movedim(1, 2).reshape(blocks, size, -1)
