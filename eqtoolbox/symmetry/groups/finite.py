"""Permutations, signs, the symmetries of a box, and groups made of other groups."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations, product
from math import factorial, prod
from typing import Annotated

import torch

from eqtoolbox.expect.bounds import instance, takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Count
from eqtoolbox.symmetry.groups.group import Direction, Element, Group, uniform_indices

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


@checked
@dataclass(frozen=True, init=False)
class Product(Group):
    """G x H x ...: elements are tuples, one entry a factor, each combined by itself.

    Example:
        >>> Product(Sign(), Symmetric(3)).order
        12
    """

    factors: tuple[Group, ...]

    def __init__(self, *factors: Group) -> None:
        if not factors or not all(isinstance(f, Group) for f in factors):
            raise ValueError(f"expected at least one Group, got {factors!r}")
        object.__setattr__(self, "factors", factors)

    @property
    def name(self) -> str:
        return "-".join(f.name for f in self.factors)

    @property
    def order(self) -> int | None:
        orders = [f.order for f in self.factors]
        return None if None in orders else prod(o for o in orders if o is not None)

    @property
    def exact(self) -> bool:
        return all(f.exact for f in self.factors)

    @property
    def uniform(self) -> bool:
        return all(f.uniform for f in self.factors)

    @property
    def identity(self) -> tuple[Element, ...]:
        return tuple(f.identity for f in self.factors)

    def compose(self, g: tuple[Element, ...], h: tuple[Element, ...]) -> tuple[Element, ...]:
        return tuple(f.compose(a, b) for f, a, b in zip(self.factors, g, h, strict=True))

    def inverse(self, g: tuple[Element, ...]) -> tuple[Element, ...]:
        return tuple(f.inverse(a) for f, a in zip(self.factors, g, strict=True))

    def elements(self) -> Iterator[tuple[Element, ...]]:
        return product(*(f.elements() for f in self.factors))

    def sample(self, count: int, generator: torch.Generator) -> list[tuple[Element, ...]]:
        return list(zip(*(f.sample(count, generator) for f in self.factors), strict=True))

    def generators(self) -> list[Direction]:
        """Those of every factor, as tuples with None for the factors that rest."""
        count = len(self.factors)
        return [
            (*[None] * i, a, *[None] * (count - i - 1))
            for i, factor in enumerate(self.factors)
            for a in factor.generators()
        ]

    def element(self, generator: Direction, parameter: float) -> tuple[Element, ...]:
        """The element that moves along one factor only."""
        return tuple(
            f.identity if a is None else f.element(a, parameter)
            for f, a in zip(self.factors, generator, strict=True)
        )


@checked
@dataclass(frozen=True)
class Semidirect(Group):
    """N ⋊ H: elements (n, h) with (n, h)(m, k) = (n · h(m), hk); first h acts, then n.

    Args:
        normal: N, the group that is moved, such as translations.
        acting: H, the group that moves it, such as quarter turns.
        moved: (h, n) -> h(n), an automorphism of N for every h.

    Example:
        >>> from eqtoolbox.symmetry.groups.group import Cyclic
        >>> dihedral = Semidirect(Cyclic(4), Sign(), lambda s, k: (s * k) % 4)
        >>> dihedral.compose((1, -1), (1, 1))
        (0, -1)
    """

    normal: Group
    acting: Group
    moved: Annotated[Callable[[Element, Element], Element], takes(2, "(h, n) -> h(n)")]

    @property
    def name(self) -> str:
        return f"{self.normal.name}-by-{self.acting.name}"

    @property
    def order(self) -> int | None:
        return Product(self.normal, self.acting).order

    @property
    def exact(self) -> bool:
        return self.normal.exact and self.acting.exact

    @property
    def uniform(self) -> bool:
        return self.normal.uniform and self.acting.uniform

    @property
    def identity(self) -> tuple[Element, Element]:
        return (self.normal.identity, self.acting.identity)

    def compose(
        self, g: tuple[Element, Element], h: tuple[Element, Element]
    ) -> tuple[Element, Element]:
        (n, a), (m, b) = g, h
        return self.normal.compose(n, self.moved(a, m)), self.acting.compose(a, b)

    def inverse(self, g: tuple[Element, Element]) -> tuple[Element, Element]:
        back = self.acting.inverse(g[1])
        return self.moved(back, self.normal.inverse(g[0])), back

    def elements(self) -> Iterator[tuple[Element, Element]]:
        return product(self.normal.elements(), self.acting.elements())

    def sample(self, count: int, generator: torch.Generator) -> list[tuple[Element, Element]]:
        left = self.normal.sample(count, generator)
        return list(zip(left, self.acting.sample(count, generator), strict=True))

    def generators(self) -> list[Direction]:
        """(A, None) for those of N, (None, B) for those of H: the algebra is their direct sum."""
        return Product(self.normal, self.acting).generators()

    def element(self, generator: Direction, parameter: float) -> tuple[Element, Element]:
        """The element that moves along N only, or along H only."""
        n, h = Product(self.normal, self.acting).element(generator, parameter)
        return n, h


def parity(p: Permutation) -> int:
    """1 for an even number of exchanges, -1 for an odd one."""
    inversions = sum(p[i] > p[j] for i in range(len(p)) for j in range(i + 1, len(p)))
    return 1 - 2 * (inversions % 2)
