"""Rope: what commutes with a rotary position embedding, a complex number per frequency."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eqtoolbox.weights.families.general_linear import MatrixSymmetry
from eqtoolbox.weights.parameter import Parameters


@dataclass(frozen=True, kw_only=True)
class Rope(MatrixSymmetry):
    """GL(1, C): A = a + b J on every rotated pair of query and key features, J = [[0, -1], [1, 0]].

    T: (q_j, q_j') -> e^(a + bJ), (k_j, k_j') -> e^(-a + bJ). Coefficients are all a, then all b;
    Q = (|q pair|^2 - |k pair|^2) / 2 for a, none for b.

    References:
        Su et al. 2021 (arXiv 2104.09864) for the embedding.
    """

    family: ClassVar[str] = "rope"

    def matrices(self, coefficients: Tensor) -> Tensor:
        a, b = coefficients.reshape(2, self.blocks)
        return torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], -2)

    @property
    def charges(self) -> int:
        return self.blocks

    def _traces(self, a: Parameters, b: Parameters, absolute: bool = False) -> Tensor:
        parts = [
            (1 if absolute else sign) * gram.diagonal(dim1=1, dim2=2).sum(-1)
            for sign, gram in self._grams(a, b)
        ]
        return torch.stack(parts).sum(0)

    def lengths(self, params: Parameters) -> Tensor:
        """Of a and of b alike: |A X|^2 = |X|^2 for A = 1 and A = J."""
        if not self.apart:
            return super().lengths(params)
        return self._traces(params, params, absolute=True).repeat(2).sqrt()

    def charge(self, params: Parameters) -> Tensor:
        return 0.5 * self._traces(params, params)

    def pairing(self, params: Parameters, direction: Parameters) -> Tensor:
        return self._traces(params, direction)

    def charge_scale(self, params: Parameters) -> Tensor:
        return 0.5 * self._traces(params, params, absolute=True)

    def finite_step(self, direction: Parameters) -> Tensor:
        return self.charge(direction)
