"""Compensation: of two parameters that are only ever added, one raised, the other lowered."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters


@dataclass(frozen=True, kw_only=True)
class Compensation(ContinuousSymmetry):
    """a -> a + u, b -> b - u, u along the last axis, the same for every row of a and b.

    Two biases of a recurrent layer, token and position table, patch bias and position table. K is
    constant, hence exactly flat, and Q_j = (sum of column j of a) - (sum of column j of b).

    References:
        Kunin et al. 2021 (arXiv 2012.04728), section 3.
    """

    family: ClassVar[str] = "translation"
    separable: ClassVar[bool] = True
    first: str
    second: str
    entries: Tensor  # indices of the last axis that move
    centred: bool = False  # sum of u zero: a common constant is a translation of each already

    @property
    def names(self) -> tuple[str, ...]:
        return (self.first, self.second)

    def shift(self, coefficients: Tensor, like: Tensor) -> Tensor:
        """u, (length of the last axis,)."""
        moved = coefficients
        if self.centred:
            moved = torch.cat([coefficients, -coefficients.sum()[None]])
        entries = self.entries.to(like.device)
        return like.new_zeros(like.shape[-1]).index_put((entries,), moved.to(like))

    def tangent(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        signs = ((self.first, 1.0), (self.second, -1.0))
        return {
            n: (s * self.shift(coefficients, params[n])).expand_as(params[n])
            for n, s in signs
            if n in params
        }

    def transform(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        return {n: params[n] + k for n, k in self.tangent(params, coefficients).items()}

    def lengths(self, params: Parameters) -> Tensor:
        entries = sum(params[n].numel() // params[n].shape[-1] for n in self.names)
        both = entries * (2 if self.centred else 1)
        return torch.full((self.dimension,), both**0.5, dtype=torch.float64).to(
            params[self.first].device
        )

    def pullback(
        self, params: Parameters, coefficients: Tensor, cotangent: Parameters
    ) -> dict[str, Tensor]:
        return {n: torch.zeros_like(cotangent[n]) for n in self.names}

    def _difference(self, first: Tensor, second: Tensor) -> Tensor:
        sums = column_sums(first) - column_sums(second)
        moved = sums[self.entries.to(sums.device)]
        return moved[:-1] - moved[-1] if self.centred else moved

    def charge(self, params: Parameters) -> Tensor:
        return self._difference(params[self.first], params[self.second])

    def pairing(self, params: Parameters, direction: Parameters) -> Tensor:
        return self.charge(direction)

    def charge_scale(self, params: Parameters) -> Tensor:
        first, second = params[self.first].abs(), params[self.second].abs()
        sums = column_sums(first) + column_sums(second)
        moved = sums[self.entries.to(sums.device)]
        return moved[:-1] + moved[-1] if self.centred else moved

    def finite_step(self, direction: Parameters) -> Tensor:
        return torch.zeros_like(self.charge(direction))


def column_sums(tensor: Tensor) -> Tensor:
    """Sum over all axes but the last, float64."""
    return tensor.reshape(-1, tensor.shape[-1]).sum(0, dtype=torch.float64)
