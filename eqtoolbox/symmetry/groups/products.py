"""Products of groups: pairs of elements that act apart, or one on the other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Annotated

import torch

from eqtoolbox.expect.bounds import takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.symmetry.groups.group import Direction, Element, Group


@checked
@dataclass(frozen=True, init=False)
class Product(Group):
    """G x H x ...: elements are tuples, one entry a factor, each combined by itself.

    Example:
        >>> from eqtoolbox.symmetry.groups import Sign, Symmetric
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
        >>> from eqtoolbox.symmetry.groups import Sign
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
