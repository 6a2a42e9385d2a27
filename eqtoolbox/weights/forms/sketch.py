"""A sketch: a few random elements of large matrix algebras instead of all of them.

Laws and charges are linear in the generator, so that random elements s_a s_b^T speak for a block's
whole gl(d): with independent signs in s, E <s_a s_b^T, S>^2 = |S|^2 (Frobenius) for a != b. The
elements act within the axis alone, so that each one's law and charge are exact.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqtoolbox.weights.forms.gram import Grams
from eqtoolbox.weights.forms.held import StackLayout
from eqtoolbox.weights.forms.stack import Points

PROJECTIONS = 4  # random vectors s of each block


class Sketch(Grams):
    """Forms of all matrices of one size d, by k random vectors of signs for each block.

    Charges are s_a^T D s_b / 2 for a < b, over the root of how many a block has, and slopes
    s_a^T S s_b for a != b alike: sums of their squares, and inner products of such vectors, are
    unbiased estimates of those of all charges along orthonormal matrices, and of all slopes.
    """

    def __init__(self, forms: Sequence[Any], layout: StackLayout) -> None:
        super().__init__(forms, layout)
        self._all, k = Grams(forms, layout), PROJECTIONS
        rng = torch.Generator().manual_seed(0)
        signs = torch.randint(2, (self.blocks, k, self.size), generator=rng) * 2 - 1
        self.vectors = signs.to(torch.int8)  # s of every block
        self._drawn = self.vectors[self.block].to(layout.device)  # and of every leg
        self.shape = (len(self._drawn), k, k)
        self._upper_entries = torch.triu_indices(k, k, 1)
        first, second = self._upper_entries.numpy()[:, :, None] == np.arange(k)
        self._ends = (first | second).astype(np.float64)  # (pairs, k): which s_a each is of

    @property
    def whole(self) -> Grams:
        return self._all

    @property
    def counts(self) -> list[int]:
        return [f.blocks * self._upper_entries.shape[1] for f in self.forms]

    @property
    def orders(self) -> list[int]:
        return [2 * count for count in self.counts]

    def seen(self, matrices: Tensor, legs: slice) -> Tensor:
        """s_a^T X."""
        return torch.bmm(self._drawn[legs].to(matrices), matrices)

    def pair(self, moments: Tensor) -> Tensor:
        total = self.signed.total(moments)
        return self._among(total + total.mT, self._upper_entries, 2.0)

    def slopes(self, moments: Tensor) -> Tensor:
        plus, minus = self.signed.sides(moments)
        ordered = torch.cat([self._upper_entries, self._upper_entries.flip(0)], 1)
        return self._among((plus.mT + minus)[None], ordered, 1.0)[0]

    def scales(self, moments: Tensor) -> Tensor:
        """Alike within a block, of the exact norm that the moments of all charges say."""
        return self._alike(self._all.scales(moments), self._upper_entries.shape[1])

    def beside(self, points: Points) -> Tensor | None:
        """Of all charges that these stand for."""
        return self._all.beside(points)

    def lengths(self, moments: Tensor, beside: Tensor | None) -> Tensor:
        """Alike within a block, too."""
        return self._alike(self._all.lengths(moments, beside), 2 * self._upper_entries.shape[1])

    def variance(self, vector: NDArray[np.float64]) -> float:
        """By a jackknife over the s_a: blocks draw theirs on their own, so that theirs add up."""
        k = PROJECTIONS
        squares = np.square(vector).reshape(self.blocks, -1, len(self._ends)).sum(1)
        shares = squares @ self._ends  # (blocks, k): of the pairs that each vector is in
        spread = np.square(shares - shares.mean(1, keepdims=True)).sum()
        return float(spread * (k - 1) / k * (k / (k - 2)) ** 2)

    def _alike(self, entries: Tensor, count: int) -> Tensor:
        norms = torch.linalg.vector_norm(entries.reshape(self.blocks, -1), dim=1)
        return torch.repeat_interleave(norms / math.sqrt(count), count)

    def _among(self, matrices: Tensor, where: Tensor, divisor: float) -> Tensor:
        """Entries of every block over the root of how many they are: (pairs, ...)."""
        chosen = matrices[:, :, where[0], where[1]]
        return torch.flatten(chosen, 1) / (divisor * math.sqrt(where.shape[1]))
