"""A group: which transformations there are, how they combine, how to draw one uniformly."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from eqtoolbox.expect.bounds import instance
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.fit import fitted
from eqtoolbox.expect.kinds import Count

Element = Any  # a plain hashable value: an int, a bool, a tuple of those
Direction = Any  # a generator: a float64 tensor, or one entry a factor with None for those at rest


class Group(ABC):
    """Transformations closed under composition and inversion; what they move, an action says.

    A new group is a subclass with the members below; every member hands out canonical elements,
    so that equal transformations are equal values.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name for records, letters of [A-Za-z0-9_.-], such as `cyclic4`."""

    @property
    @abstractmethod
    def order(self) -> int | None:
        """Number of elements; None when there are infinitely many."""

    @property
    @abstractmethod
    def identity(self) -> Element:
        """The element that moves nothing."""

    @abstractmethod
    def compose(self, g: Element, h: Element) -> Element:
        """The element gh: first h, then g."""

    @abstractmethod
    def inverse(self, g: Element) -> Element:
        """The element that undoes g."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> list[Element]:
        """`count` independent elements from the uniform (Haar) measure, the identity included.

        A group without a finite one draws from a bounded part and says so (`uniform`).

        Args:
            count: how many, >= 0.
            generator: the only source of randomness; the global one is never touched.
        """

    def elements(self) -> Iterator[Element]:
        """Every element once, the identity first.

        Raises:
            ValueError: the group has no end.
        """
        raise ValueError(f"{self.name} has no finite list of elements; draw some with sample()")

    @property
    def exact(self) -> bool:
        """True when elements combine without rounding, as integers do."""
        return True

    @property
    def uniform(self) -> bool:
        """True when `sample` is Haar; False when there is no such measure and it draws a part."""
        return True

    @property
    def invertible(self) -> bool:
        """False for a semigroup, whose elements cannot be undone (see `Strengths`)."""
        return True

    def generators(self) -> list[Direction]:
        """A basis of the directions in which elements leave the identity; none if it is discrete.

        Float64; for matrix groups matrices (n, n), in radians or units of the coordinates.
        """
        return []

    def element(self, generator: Direction, parameter: float) -> Element:
        """exp(parameter · generator), the element that a generator leads to.

        Raises:
            ValueError: the group has no generators.
        """
        raise ValueError(f"{self.name} has no generators: its elements are apart from each other")


@checked
@dataclass(frozen=True)
class Cyclic(Group):
    """Z_n: the powers 0 .. n-1 of one step that returns after n.

    Raises:
        ValueError: n is not an integer >= 1.

    Example:
        >>> Cyclic(4).compose(3, 2), Cyclic(4).inverse(1)
        (1, 3)
    """

    n: Count

    @property
    def name(self) -> str:
        return f"cyclic{self.n}"

    @property
    def order(self) -> int:
        return self.n

    @property
    def identity(self) -> int:
        return 0

    def compose(self, g: int, h: int) -> int:
        return (g + h) % self.n

    def inverse(self, g: int) -> int:
        return -g % self.n

    def elements(self) -> Iterator[int]:
        return iter(range(self.n))

    def sample(self, count: int, generator: torch.Generator) -> list[int]:
        return uniform_indices(self.n, count, generator)


@checked
@dataclass(frozen=True)
class Dihedral(Group):
    """D_n: n rotations, and the same n after a reflection; 2n elements (k, flipped).

    (k, flipped) reads r^k s^flipped: reflect first if flipped, then turn k times; s r s = r^-1.

    Raises:
        ValueError: n is not an integer >= 1.

    Example:
        >>> Dihedral(4).compose((1, True), (1, False))
        (0, True)
    """

    n: Count

    @property
    def name(self) -> str:
        return f"dihedral{self.n}"

    @property
    def order(self) -> int:
        return 2 * self.n

    @property
    def identity(self) -> tuple[int, bool]:
        return (0, False)

    def compose(self, g: tuple[int, bool], h: tuple[int, bool]) -> tuple[int, bool]:
        (turns, flipped), (later, also) = g, h
        return ((turns - later if flipped else turns + later) % self.n, flipped != also)

    def inverse(self, g: tuple[int, bool]) -> tuple[int, bool]:
        turns, flipped = g
        return g if flipped else (-turns % self.n, False)

    def elements(self) -> Iterator[tuple[int, bool]]:
        return ((k, flipped) for flipped in (False, True) for k in range(self.n))

    def sample(self, count: int, generator: torch.Generator) -> list[tuple[int, bool]]:
        return [(i % self.n, i >= self.n) for i in uniform_indices(2 * self.n, count, generator)]


@dataclass(frozen=True)
class Flip(Group):
    """Z_2 as one mirror: False leaves, True reflects.

    Example:
        >>> list(Flip().elements())
        [False, True]
    """

    @property
    def name(self) -> str:
        return "flip"

    @property
    def order(self) -> int:
        return 2

    @property
    def identity(self) -> bool:
        return False

    def compose(self, g: bool, h: bool) -> bool:
        return g != h

    def inverse(self, g: bool) -> bool:
        return g

    def elements(self) -> Iterator[bool]:
        return iter((False, True))

    def sample(self, count: int, generator: torch.Generator) -> list[bool]:
        return [bool(i) for i in uniform_indices(2, count, generator)]


@checked
@dataclass(frozen=True)
class CyclicTranslation(Group):
    """Z_H x Z_W: whole-pixel shifts of an H x W image whose edges are joined; elements (dy, dx).

    Args:
        size: H and W in pixels; a single integer means a square.

    Raises:
        ValueError: the size is not one or two integers >= 1.

    Example:
        >>> CyclicTranslation((4, 6)).compose((3, 5), (2, 2))
        (1, 1)
    """

    size: Annotated[  # held as (H, W)
        int | tuple[int, int], instance("one integer or (height, width)")
    ]

    def __post_init__(self) -> None:
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        sides = zip(("height", "width"), size, strict=True)
        object.__setattr__(self, "size", tuple(fitted(word, n, Count) for word, n in sides))

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def name(self) -> str:
        return "translation"

    @property
    def order(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def identity(self) -> tuple[int, int]:
        return (0, 0)

    def compose(self, g: tuple[int, int], h: tuple[int, int]) -> tuple[int, int]:
        return ((g[0] + h[0]) % self.shape[0], (g[1] + h[1]) % self.shape[1])

    def inverse(self, g: tuple[int, int]) -> tuple[int, int]:
        return (-g[0] % self.shape[0], -g[1] % self.shape[1])

    def elements(self) -> Iterator[tuple[int, int]]:
        return ((dy, dx) for dy in range(self.shape[0]) for dx in range(self.shape[1]))

    def sample(self, count: int, generator: torch.Generator) -> list[tuple[int, int]]:
        return [divmod(i, self.shape[1]) for i in uniform_indices(self.order, count, generator)]


def uniform_indices(bound: int, count: int, generator: torch.Generator) -> list[int]:
    if count < 0:
        raise ValueError(f"count must be >= 0, got {count}")
    drawn = torch.randint(bound, (count,), generator=generator, device=generator.device)
    return [int(i) for i in drawn.tolist()]
