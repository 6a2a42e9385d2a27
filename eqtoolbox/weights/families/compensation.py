"""Compensation: of two parameters that are only ever added, one raised, the other lowered."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from eqtoolbox.weights.forms.linear import LinearForm, Term
from eqtoolbox.weights.parameter import ContinuousSymmetry


@dataclass(frozen=True, kw_only=True)
class Compensation(ContinuousSymmetry):
    """a -> a + u, b -> b - u, u along the last axis, the same for every row of a and b.

    Two biases of a recurrent layer, token and position table, patch bias and position table. K is
    constant, hence exactly flat, and Q_j = (sum of column j of a) - (sum of column j of b).

    References:
        Kunin et al. 2021 (arXiv 2012.04728), section 3.
    """

    family: ClassVar[str] = "translation"
    first: str
    second: str
    entries: Tensor  # indices of the last axis that move
    centred: bool = False  # sum of u zero: a common constant is a translation of each already

    @cached_property
    def form(self) -> LinearForm:
        every, ones = torch.arange(self.dimension), torch.ones(self.dimension).double()
        moved = [(self.entries[: self.dimension], ones)]
        if self.centred:
            moved.append((self.entries[-1:].expand(self.dimension), -ones))
        terms = [
            Term(name, None, slots, every, sign * rates)
            for name, sign in ((self.first, 1.0), (self.second, -1.0))
            for slots, rates in moved
        ]
        return LinearForm(terms=tuple(terms), dimension=self.dimension)
