"""Translation: constants added to a parameter that what reads it ignores."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from eqtoolbox.weights.forms.linear import LinearForm, Term
from eqtoolbox.weights.parameter import ContinuousSymmetry


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
    strength: ClassVar[float] = 10.0  # large: a unit that is dead on this batch must come to life
    shifts: tuple[Term, ...]  # each with units of its own, counted from 0

    @cached_property
    def form(self) -> LinearForm:
        terms: list[Term] = []
        first = 0
        for own in self.shifts:
            terms.append(replace(own, units=own.units + first))
            first += own.count
        return LinearForm(terms=tuple(terms), dimension=self.dimension)
