"""Permutations, signs, the symmetries of a box, and groups made of other groups."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product
from math import factorial, prod
from typing import Annotated

import torch

from eqtoolbox.expect.bounds import instance
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Count
from eqtoolbox.symmetry.groups.group import Group, uniform_indices

Permutation = tuple[int, ...]
Spacing = Annotated[tuple[float, float, float], instance("three positive numbers")]
_ENUMERATED = 5040  # 7!: longest list of permutations that elements() hands out


@checked
@dataclass(frozen=True)
class Symmetric(Group):
    """S_n: permutations of 0 .. n-1 as tuples g with i -> g[i]; gh is first h, then g.

    Raises:
        ValueError: n is no integer >= 1; elements() of more than 7 things.

    Example:
        >>> Symmetric(3).compose((1, 2, 0), (1, 0, 2)), Symmetric(3).inverse((1, 2, 0))
        ((2, 1, 0), (2, 0, 1))
    """

    n: Count

    @property
    def name(self) -> str:
        return f"symmetric{self.n}"

    @property
    def order(self) -> int:
        return factorial(self.n)

    @property
    def identity(self) -> Permutation:
        return tuple(range(self.n))

    def compose(self, g: Permutation, h: Permutation) -> Permutation:
        return tuple(g[i] for i in h)

    def inverse(self, g: Permutation) -> Permutation:
        back = [0] * self.n
        for i, image in enumerate(g):
            back[image] = i
        return tuple(back)

    def elements(self) -> Iterator[Permutation]:
        if self.order > _ENUMERATED:
            raise ValueError(f"{self.name} has {self.order} elements; draw some with sample()")
        return permutations(range(self.n))

    def sample(self, count: int, generator: torch.Generator) -> list[Permutation]:
        if count < 0:
            raise ValueError(f"count must be >= 0, got {count}")
        device = generator.device
        drawn = (torch.randperm(self.n, generator=generator, device=device) for _ in range(count))
        return [tuple(int(i) for i in p.tolist()) for p in drawn]


@dataclass(frozen=True)
class Sign(Group):
    """{1, -1} under multiplication: oddness, evenness, time reversal.

    Example:
        >>> Sign().compose(-1, -1)
        1
    """

    @property
    def name(self) -> str:
        return "sign"

    @property
    def order(self) -> int:
        return 2

    @property
    def identity(self) -> int:
        return 1

    def compose(self, g: int, h: int) -> int:
        return g * h

    def inverse(self, g: int) -> int:
        return g

    def elements(self) -> Iterator[int]:
        return iter((1, -1))

    def sample(self, count: int, generator: torch.Generator) -> list[int]:
        return [1 - 2 * i for i in uniform_indices(2, count, generator)]


@checked
@dataclass(frozen=True)
class Octahedral(Group):
    """O_h: the symmetries of a box of voxels, elements (permutation, signs) of its three axes.

    (p, s) sends axis i to axis p[i], reversed where s[i] = -1. Only axes of equal voxel spacing
    are exchanged: 48 elements for cubic voxels, 16 for (1, 1, 2), 8 for three different spacings.

    Args:
        spacing: voxel size along each axis, any unit.
        proper: rotations only, half of them.

    Example:
        >>> Octahedral().order, Octahedral((1.0, 1.0, 2.0)).order, Octahedral(proper=True).order
        (48, 16, 24)
    """

    spacing: Spacing = (1.0, 1.0, 1.0)
    proper: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "spacing", tuple(float(s) for s in self.spacing))
        if len(self.spacing) != 3 or not all(s > 0 for s in self.spacing):
            raise ValueError(f"spacing must be three positive numbers, got {self.spacing!r}")

    @property
    def name(self) -> str:
        return "octahedral"

    @property
    def order(self) -> int:
        return len(self._all())

    @property
    def identity(self) -> tuple[Permutation, Permutation]:
        return ((0, 1, 2), (1, 1, 1))

    def compose(
        self, g: tuple[Permutation, Permutation], h: tuple[Permutation, Permutation]
    ) -> tuple[Permutation, Permutation]:
        (p, s), (q, t) = g, h
        return tuple(p[i] for i in q), tuple(t[i] * s[q[i]] for i in range(3))

    def inverse(self, g: tuple[Permutation, Permutation]) -> tuple[Permutation, Permutation]:
        p, s = g
        back = Symmetric(3).inverse(p)
        return back, tuple(s[i] for i in back)

    def elements(self) -> Iterator[tuple[Permutation, Permutation]]:
        return iter(self._all())

    def sample(
        self, count: int, generator: torch.Generator
    ) -> list[tuple[Permutation, Permutation]]:
        every = self._all()
        return [every[i] for i in uniform_indices(len(every), count, generator)]

    def _all(self) -> list[tuple[Permutation, Permutation]]:
        found = []
        for p in permutations(range(3)):
            if any(self.spacing[i] != self.spacing[p[i]] for i in range(3)):
                continue
            for s in product((1, -1), repeat=3):
                if not self.proper or parity(p) * prod(s) == 1:
                    found.append((p, s))
        return found


def parity(p: Permutation) -> int:
    """1 for an even number of exchanges, -1 for an odd one."""
    inversions = sum(p[i] > p[j] for i in range(len(p)) for j in range(i + 1, len(p)))
    return 1 - 2 * (inversions % 2)
