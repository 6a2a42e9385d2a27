"""General linear: an axis that only linear maps touch, transformed by any invertible matrix."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters


@dataclass(frozen=True, eq=False)
class MatrixLeg:
    """One parameter's part: the axis entries that block b's matrix mixes, once per copy."""

    name: str
    axis: int
    positions: Tensor  # (blocks, copies, size), indices along the axis
    sign: int  # +1: multiplied by e^A, -1: by e^-A^T

    def gather(self, tensor: Tensor) -> Tensor:
        """(blocks, copies, size, rest)."""
        rows = tensor.movedim(self.axis, 0)
        rows = rows.reshape(rows.shape[0], -1)
        return rows[self.positions.to(rows.device)]

    def scatter(self, blocks: Tensor, into: Tensor) -> Tensor:
        """`into` with its gathered entries replaced."""
        moved = into.movedim(self.axis, 0)
        rows = moved.reshape(moved.shape[0], -1).clone()
        rows[self.positions.to(rows.device).reshape(-1)] = blocks.reshape(-1, rows.shape[1])
        return rows.reshape(moved.shape).movedim(0, self.axis)


@dataclass(frozen=True, kw_only=True)
class MatrixSymmetry(ContinuousSymmetry):
    """T_A: in -> e^A in, out -> out e^-A for every block, A in a Lie algebra of matrices."""

    separable: ClassVar[bool] = True
    legs: tuple[MatrixLeg, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(leg.name for leg in self.legs))

    @property
    def blocks(self) -> int:
        """Number of blocks (heads)."""
        return self.legs[0].positions.shape[0]

    @property
    def size(self) -> int:
        """d, the size of a block's matrix."""
        return self.legs[0].positions.shape[2]

    @property
    def apart(self) -> bool:
        """Whether no two legs move the same entry of a parameter."""
        by_name: dict[str, list[MatrixLeg]] = {}
        for leg in self.legs:
            by_name.setdefault(leg.name, []).append(leg)
        for legs in by_name.values():
            moved = [k for leg in legs for k in leg.positions.flatten().tolist()]
            if len({leg.axis for leg in legs}) > 1 or len(set(moved)) < len(moved):
                return False
        return True

    def matrices(self, coefficients: Tensor) -> Tensor:
        """A of every block, (blocks, d, d)."""
        raise NotImplementedError

    def _moved(self, tensors: Parameters, plus: Tensor, minus: Tensor) -> dict[str, Tensor]:
        moved: dict[str, Tensor] = {}
        for leg in self.legs:
            if leg.name not in tensors:
                continue
            old = moved.get(leg.name, tensors[leg.name])
            matrix = (plus if leg.sign > 0 else minus).to(old)
            new = torch.einsum("bij,bcjr->bcir", matrix, leg.gather(old))
            moved[leg.name] = leg.scatter(new, old)
        return moved

    def transform(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        return self.flow(coefficients)(params)

    def flow(self, coefficients: Tensor) -> Callable[[Parameters], dict[str, Tensor]]:
        a = self.matrices(coefficients)
        plus, minus = torch.matrix_exp(a), torch.matrix_exp(-a.mT)
        return lambda params: self._moved(params, plus, minus)

    def _summed(self, tensors: Parameters, plus: Tensor, minus: Tensor) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for leg in self.legs:
            if leg.name not in tensors:
                continue
            like = tensors[leg.name]
            matrix = (plus if leg.sign > 0 else minus).to(like)
            part = torch.einsum("bij,bcjr->bcir", matrix, leg.gather(like))
            whole = leg.scatter(part, torch.zeros_like(like))
            total[leg.name] = total[leg.name] + whole if leg.name in total else whole
        return total

    def tangent(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        a = self.matrices(coefficients)
        return self._summed(params, a, -a.mT)

    def pullback(
        self, params: Parameters, coefficients: Tensor, cotangent: Parameters
    ) -> dict[str, Tensor]:
        a = self.matrices(coefficients)
        return self._summed(cotangent, a.mT, -a)

    def _grams(self, a: Parameters, b: Parameters) -> Iterator[tuple[int, Tensor]]:
        """Sign and X Y^T of every leg, (blocks, d, d), float64."""
        for leg in self.legs:
            x, y = leg.gather(a[leg.name]).double(), leg.gather(b[leg.name]).double()
            yield leg.sign, torch.einsum("bcir,bcjr->bij", x, y)


@dataclass(frozen=True, kw_only=True)
class GeneralLinear(MatrixSymmetry):
    """GL(d): linear-linear, query-key and value-output of each head, low-rank adapters.

    T_A: W1 -> e^A W1, b1 -> e^A b1, W2 -> W2 e^-A; grouped queries share the matrix of their key.
    Symmetric A conserve D = W1 W1^T + b1 b1^T - W2^T W2: d (d + 1) / 2 charges <A, D> / 2 a block,
    of orthonormal A, so that their norm |D| / 2 is the same in every basis of the axis; for
    antisymmetric A the laws hold and nothing is conserved.

    References:
        Arora et al. 2018 (arXiv 1802.06509); Marcotte et al. 2023 (arXiv 2307.00144).
    """

    family: ClassVar[str] = "general_linear"
    strength: ClassVar[float] = 0.1

    def matrices(self, coefficients: Tensor) -> Tensor:
        return coefficients.reshape(self.blocks, self.size, self.size)

    @property
    def charges(self) -> int:
        return self.blocks * self.size * (self.size + 1) // 2

    def lengths(self, params: Parameters) -> Tensor:
        """|E_ij X|^2 + |E_ji Y|^2 = |X_j|^2 + |Y_i|^2."""
        if not self.apart:
            return super().lengths(params)
        rows = {sign: torch.zeros((), dtype=torch.float64) for sign in (1, -1)}
        for leg in self.legs:
            squares = leg.gather(params[leg.name]).double().square().sum(dim=(1, 3))
            rows[leg.sign] = rows[leg.sign].to(squares) + squares
        plus, minus = (rows[sign].expand(self.blocks, self.size) for sign in (1, -1))
        return (minus[:, :, None] + plus[:, None, :]).flatten().sqrt()

    def _upper(self, forms: Tensor) -> Tensor:
        """Along E_ii and (E_ij + E_ji) / sqrt 2, half of <A, form> each: (charges,)."""
        i, j = torch.triu_indices(self.size, self.size, device=forms.device)
        weights = torch.where(i == j, 0.5, 0.5**0.5).to(forms)
        return (forms[:, i, j] * weights).reshape(-1)

    def charge(self, params: Parameters) -> Tensor:
        total = sum((sign * gram for sign, gram in self._grams(params, params)), torch.tensor(0.0))
        return self._upper(total)

    def pairing(self, params: Parameters, direction: Parameters) -> Tensor:
        grams = self._grams(params, direction)
        total = sum((sign * gram for sign, gram in grams), torch.tensor(0.0))
        return self._upper(total + total.mT)

    def charge_scale(self, params: Parameters) -> Tensor:
        total = torch.tensor(0.0)
        for _, gram in self._grams(params, params):
            lengths = gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
            total = total + lengths[:, :, None] * lengths[:, None, :]
        return self._upper(total)

    def finite_step(self, direction: Parameters) -> Tensor:
        return self.charge(direction)
