"""Subgroups: some elements of a finite group that are a group by themselves."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eqtoolbox.symmetry.groups.group import (
    Cyclic,
    Dihedral,
    Element,
    Flip,
    Group,
    uniform_indices,
)


@dataclass(frozen=True)
class Subgroup(Group):
    """Elements of a finite group, closed under composition, the identity first.

    Example:
        >>> from eqtoolbox.symmetry.groups.group import Cyclic
        >>> Subgroup(Cyclic(4), (0, 2)).order
        2
    """

    whole: Group
    kept: tuple[Element, ...]

    @property
    def name(self) -> str:
        return f"{self.order}-of-{self.whole.name}"

    @property
    def order(self) -> int:
        return len(self.kept)

    @property
    def identity(self) -> Element:
        return self.whole.identity

    def compose(self, g: Element, h: Element) -> Element:
        return self.whole.compose(g, h)

    def inverse(self, g: Element) -> Element:
        return self.whole.inverse(g)

    def elements(self) -> Iterator[Element]:
        return iter(self.kept)

    def sample(self, count: int, generator: torch.Generator) -> list[Element]:
        return [self.kept[i] for i in uniform_indices(self.order, count, generator)]


def elements_in(
    whole: Group, held: Sequence[Element], part: Group | Collection[Any]
) -> list[Element]:
    """The elements of a subgroup, in the order of the whole.

    Args:
        whole: the group that composes.
        held: the elements in force.
        part: elements, or a group that lies in it in one known way.

    Raises:
        ValueError: they are not among those in force, or not closed under composition.

    Example:
        >>> elements_in(Cyclic(4), [0, 1, 2, 3], Cyclic(2))
        [0, 2]
    """
    wanted = set(_embedded(whole, part) if isinstance(part, Group) else part)
    odd = wanted - set(held)
    if odd or not wanted:
        raise ValueError(
            f"expected elements among {list(held)}, got {sorted(map(repr, odd)) or 'none'}"
        )
    open_ends = [(g, h) for g in wanted for h in wanted if whole.compose(g, h) not in wanted]
    if open_ends:
        g, h = open_ends[0]
        raise ValueError(
            f"expected a subgroup: {g!r} and {h!r} make {whole.compose(g, h)!r}, which is left out"
        )
    return [g for g in held if g in wanted]


def _embedded(whole: Group, part: Group) -> list[Element]:
    if isinstance(part, Subgroup) or part == whole:
        return list(part.elements())
    match whole, part:
        case (Cyclic(n), Cyclic(m)) if n % m == 0:
            return [k * (n // m) for k in range(m)]
        case (Dihedral(n), Cyclic(m)) if n % m == 0:
            return [(k * (n // m), False) for k in range(m)]
        case (Dihedral(n), Dihedral(m)) if n % m == 0:
            return [(k * (n // m), f) for k, f in part.elements()]
        case (Dihedral(), Flip()):
            return [(0, False), (0, True)]
    if type(whole) is type(part):
        return list(part.elements())
    raise ValueError(
        f"{part.name} lies in {whole.name} in no one way: give the elements, such as "
        f"{[whole.identity]}"
    )
