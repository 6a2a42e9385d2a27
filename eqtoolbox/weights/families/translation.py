"""Translation: constants added to a parameter that what reads it ignores."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters


@dataclass(frozen=True, eq=False)
class Shift:
    """One parameter's part: along `axis`, index i moves with group groups[i] (-1: not at all)."""

    name: str
    axis: int
    groups: Tensor  # (length of the axis,)
    count: int  # groups
    width: int  # entries per index, each shifted on its own

    def rows(self, tensor: Tensor) -> Tensor:
        """(length, width)."""
        return tensor.movedim(self.axis, 0).reshape(len(self.groups), self.width)

    def spread(self, shifts: Tensor, like: Tensor) -> Tensor:
        """Shifts (count * width,) as a tensor of the parameter's shape."""
        table = shifts.to(like).reshape(self.count, self.width)
        padded = torch.cat([table, table.new_zeros(1, self.width)])
        moved = like.movedim(self.axis, 0)
        return padded[self.groups.to(like.device)].reshape(moved.shape).movedim(0, self.axis)

    @property
    def lengths(self) -> Tensor:
        """|K| of every shift, the root of the entries it moves: (count * width,), float64."""
        counts = torch.bincount(self.groups[self.groups >= 0], minlength=self.count)
        return counts.double().sqrt().repeat_interleave(self.width)

    def sums(self, tensor: Tensor) -> Tensor:
        """Sum per group and column, (count * width,), float64."""
        rows = self.rows(tensor).double()
        total = rows.new_zeros(self.count + 1, self.width)
        groups = self.groups.to(rows.device)
        where = torch.where(groups < 0, self.count, groups)
        return total.index_add(0, where, rows)[: self.count].reshape(-1)


@dataclass(frozen=True, kw_only=True)
class Translation(ContinuousSymmetry):
    """W_cj -> W_cj + s_j for all c of a group; K_j is the indicator of column j of that group.

    Softmax head, and writers of a stream that only mean-free normalisations read: all rows are
    one group. Bias before BatchNorm, key bias of attention: each entry is a group. K is constant,
    so it is exactly flat (H K = 0, D K = 0), and Q_j = sum of the group's W_cj.

    References:
        Kunin et al. 2021 (arXiv 2012.04728), section 3.
    """

    family: ClassVar[str] = "translation"
    separable: ClassVar[bool] = True
    strength: ClassVar[float] = 10.0  # large: a unit that is dead on this batch must come to life
    shifts: tuple[Shift, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(shift.name for shift in self.shifts)

    def tangent(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        parts = torch.split(coefficients, [s.count * s.width for s in self.shifts])
        return {
            s.name: s.spread(part, params[s.name])
            for s, part in zip(self.shifts, parts, strict=True)
            if s.name in params
        }

    def transform(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        return {n: params[n] + k for n, k in self.tangent(params, coefficients).items()}

    def slopes(self, params: Parameters, cotangent: Parameters) -> Tensor:
        return self.pairing(params, cotangent)

    def lengths(self, params: Parameters) -> Tensor:
        return torch.cat([s.lengths for s in self.shifts]).to(params[self.shifts[0].name].device)

    def pullback(
        self, params: Parameters, coefficients: Tensor, cotangent: Parameters
    ) -> dict[str, Tensor]:
        return {name: torch.zeros_like(cotangent[name]) for name in self.names}

    def charge(self, params: Parameters) -> Tensor:
        return torch.cat([s.sums(params[s.name]) for s in self.shifts])

    def pairing(self, params: Parameters, direction: Parameters) -> Tensor:
        return self.charge(direction)

    def charge_scale(self, params: Parameters) -> Tensor:
        return torch.cat([s.sums(params[s.name].abs()) for s in self.shifts])

    def finite_step(self, direction: Parameters) -> Tensor:
        some = direction[self.names[0]]
        return torch.zeros(self.dimension, dtype=torch.float64, device=some.device)
