"""Transformations that cannot be undone: quantise, sort, keep the largest, drop points.

They form no group: nothing is pulled back and nothing differentiated. What can be measured is
|f(S_g x) - R_g f(x)| at finite elements, with its floor, and whether the predicted class stays.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from eqtoolbox.expect.bounds import some
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Count, Natural, Positive, Seed
from eqtoolbox.symmetry.groups.group import Element, Group, uniform_indices

Numbers = Annotated[tuple[Natural, ...], some("integers >= 0")]  # one a strength


@checked
@dataclass(frozen=True)
class Strengths(Group):
    """Strengths 0 .. n of a transformation, 0 being none: a set without products and inverses.

    Example:
        >>> list(Strengths(2).elements()), Strengths(2).invertible
        ([0, 1, 2], False)
    """

    n: Count = 1

    @property
    def name(self) -> str:
        return f"strengths{self.n}"

    @property
    def order(self) -> int:
        return self.n + 1

    @property
    def identity(self) -> int:
        return 0

    @property
    def invertible(self) -> bool:
        return False

    def compose(self, g: Element, h: Element) -> Element:
        raise ValueError(f"{self.name} has no products; measure with equivariance_error alone")

    def inverse(self, g: Element) -> Element:
        raise ValueError(f"{self.name} cannot be undone; measure with equivariance_error alone")

    def elements(self) -> Iterator[int]:
        return iter(range(self.n + 1))

    def sample(self, count: int, generator: torch.Generator) -> list[int]:
        return uniform_indices(self.n + 1, count, generator)


@checked
@dataclass(frozen=True)
class Quantise:
    """Values rounded to multiples of step · 2^(g - 1): the action of Strengths.

    Example:
        >>> Quantise(0.5)(1, torch.tensor([0.3, 0.9]))
        tensor([0.5000, 1.0000])
    """

    step: Positive

    def __call__(self, g: int, x: Tensor) -> Tensor:
        step = self.step * 2.0 ** (g - 1)
        return torch.round(x / step) * step if g else x


@dataclass(frozen=True)
class Sorted:
    """Entries along `dim` in ascending order when g is 1: the action of Strengths(1).

    Example:
        >>> Sorted()(1, torch.tensor([3, 1, 2]))
        tensor([1, 2, 3])
    """

    dim: int = -1

    def __call__(self, g: int, x: Tensor) -> Tensor:
        return torch.sort(x, dim=self.dim, stable=True).values if g else x


@checked
@dataclass(frozen=True)
class KeepLargest:
    """All but the `keep[g - 1]` entries of largest size along `dim` set to zero, by Strengths.

    Example:
        >>> KeepLargest((1,))(1, torch.tensor([3.0, -4.0, 2.0]))
        tensor([ 0., -4.,  0.])
    """

    keep: Numbers
    dim: int = -1

    def __call__(self, g: int, x: Tensor) -> Tensor:
        if not g:
            return x
        where = x.abs().topk(self.keep[g - 1], self.dim).indices
        return torch.zeros_like(x).scatter(self.dim, where, x.gather(self.dim, where))


@checked
@dataclass(frozen=True)
class DropPoints:
    """The last `drop[g - 1]` of an evenly mixed order of points removed along `dim`, by Strengths.

    The order is drawn once from `seed`, so that stronger elements drop more of the same points.

    Example:
        >>> DropPoints((1, 2))(2, torch.ones(1, 5, 3)).shape
        torch.Size([1, 3, 3])
    """

    drop: Numbers
    dim: int = -2
    seed: Seed = 0

    def __call__(self, g: int, x: Tensor) -> Tensor:
        if not g:
            return x
        count, gone = x.shape[self.dim], self.drop[g - 1]
        if gone >= count:
            raise ValueError(f"cannot drop {gone} of {count} points; drop fewer")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        kept: Tensor = order[: count - gone].sort().values
        return x.index_select(self.dim, kept.to(x.device))
