"""The share of an output's variance that comes from the group: analysis of variance over g and x.

Total = within (over g, at one x) + between (of the twirl, over x). Of drawn elements both are
estimated without bias, the second never below zero, so that the share stays in [0, 1].
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.symmetry.orbit import double, square

_RESOLVED = 9.0  # a variance counts from this many squared roundings on
_KEPT = 2**18  # numbers of each f_g kept for the standard error


@dataclass(frozen=True, kw_only=True)
class Share:
    """E_x Var_g f_g / Var_{x,g} f_g."""

    value: float  # [0, 1]; NaN: cannot be said
    floor: float  # what rounding alone makes of it; NaN likewise
    stderr: float  # jackknife over drawn elements, rather too large; 0: all used; NaN: below 3


class OrbitMoments:
    """Running sums of f_g over the group, about f_e, so that the orbit itself is never stored."""

    def __init__(self, outputs: Tensor, order: int | None, enumerated: bool) -> None:
        self.base = double(outputs)  # f_e, (batch, features)
        self.energy = square(self.base)  # |f_e|^2
        self.share = 0.0 if order is None else 1.0 / order  # weight of e in the group
        self.enumerated = enumerated
        self.shift = torch.zeros_like(self.base)  # sum over g of f_g - f_e
        self.squares: list[Tensor] = []  # |f_g - f_e|^2
        self.means: list[Tensor] = []  # mean over x of f_g - f_e, (features,), when g is drawn
        self.rows: list[Tensor] = []  # f_g - f_e of the first samples, likewise

    def add(self, pulled: Tensor) -> None:
        deviation = double(pulled) - self.base
        self.shift += deviation
        self.squares.append(square(deviation))
        if not self.enumerated:
            self.means.append(deviation.mean(dim=0))
            count = max(2, _KEPT // max(deviation.shape[1], 1))
            self.rows.append(deviation[:count].flatten())

    def twirl(self) -> Tensor:
        """Mean of f_g over e and the elements added, (batch, features) in float64."""
        return self.base + self.shift / (len(self.squares) + 1)

    def fraction(self, floor: float) -> Share:
        """The share over the whole group, from the elements added.

        Args:
            floor: relative error that rounding makes.
        """
        count, batch = len(self.squares), len(self.base)
        if count == 0 or batch < 2 or (count < 2 and not self.enumerated):
            return Share(value=math.nan, floor=math.nan, stderr=math.nan)
        shift = self.shift / count
        centred = self.base - self.base.mean(dim=0)
        parts = self._parts(
            level=torch.stack(self.squares).mean() / batch,
            mean=square(shift) / batch,
            centre=square(shift.mean(dim=0)),
            spread=shift.new_zeros(()) if self.enumerated else _spread(self.means),
            along=(centred * shift).sum() / batch,
            still=square(centred) / batch,
            count=count,
        )
        within, total = map(float, parts)
        rounding = floor**2 * float(self.energy) / batch
        if not total > _RESOLVED * rounding:
            return Share(value=math.nan, floor=math.nan, stderr=math.nan)
        stderr = 0.0 if self.enumerated else self._jackknife()
        return Share(value=within / total, floor=rounding / total, stderr=stderr)

    def _parts(
        self,
        *,
        level: Tensor,  # E |f_g - f_e|^2 over g != e
        mean: Tensor,  # |E_g f_g - f_e|^2
        centre: Tensor,  # |E_x E_g f_g - E_x f_e|^2
        spread: Tensor,  # variance over g of E_x f_g
        along: Tensor,  # E <f_e - E_x f_e, E_g f_g - f_e>
        still: Tensor,  # Var_x f_e
        count: int,
    ) -> tuple[Tensor, Tensor]:
        """Within, and within + between; of any shape."""
        others = 1.0 - self.share
        variance = level - mean  # E_x Var_g f_g over g != e
        if not self.enumerated:  # both become unbiased
            variance, centre = variance * count / (count - 1), centre - spread / count
        within = others**2 * variance + self.share * others * level
        total = still + 2.0 * others * along + others * level - others**2 * centre
        return within, within + (total - within).clamp(min=0.0)

    def _jackknife(self) -> float:
        """Standard error of the share: each element left out once, from the rows that were kept."""
        count = len(self.rows)
        if count < 3:
            return math.nan
        rows = torch.stack(self.rows).reshape(count, -1, self.base.shape[1])
        n = rows.shape[1]
        base = self.base[:n]
        centred, means = base - base.mean(dim=0), rows.mean(dim=1)
        products, of_means = _products(rows.flatten(1)) / n, _products(means)
        along = rows.flatten(1) @ centred.flatten() / n
        inner, lengths = _without(of_means), (of_means.diagonal().sum() - of_means.diagonal())
        within, total = self._parts(
            level=(products.diagonal().sum() - products.diagonal()) / (count - 1),
            mean=_without(products),
            centre=inner,
            spread=(lengths / (count - 1) - inner) * (count - 1) / (count - 2),
            along=(along.sum() - along) / (count - 1),
            still=square(centred) / n,
            count=count - 1,
        )
        return math.sqrt(float((count - 1) * (within / total).var(correction=0)))


def _spread(means: list[Tensor]) -> Tensor:
    return torch.stack(means).var(dim=0).sum()


def _products(rows: Tensor) -> Tensor:
    return rows @ rows.T


def _without(products: Tensor) -> Tensor:
    """|mean of all rows but one|^2, for each row left out."""
    whole = products.sum() - 2.0 * products.sum(dim=1) + products.diagonal()
    return whole / (len(products) - 1) ** 2
