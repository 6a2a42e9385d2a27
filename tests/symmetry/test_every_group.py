"""Laws of every group in the room of groups, finite or not, and groups that must fail them."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch

from eqtoolbox.symmetry import groups
from eqtoolbox.symmetry.groups.group import Cyclic, Element, Group
from eqtoolbox.symmetry.groups.matrices import Orthogonal, Rows

GIVEN: dict[str, tuple[Any, ...]] = {  # of those that cannot be made without arguments
    "Cyclic": (4,),
    "Dihedral": (5,),
    "CyclicTranslation": ((2, 5),),
    "Symmetric": (4,),
    "Product": (Cyclic(2), Cyclic(3)),
    "Semidirect": (Cyclic(5), Cyclic(2), lambda h, n: -n % 5 if h else n),
    "Orthogonal": (3,),
    "Euclidean": (2,),
    "Translations": ((2.0, 3.0),),
}
NO_GROUP = {"Strengths"}  # of what cannot be undone: nothing to combine


def every_group() -> Iterator[type[Group]]:
    """The classes that the files of the room define, but for those that only promise."""
    for file in pkgutil.iter_modules(groups.__path__):
        module = importlib.import_module(f"{groups.__name__}.{file.name}")
        for kind in vars(module).values():
            own = inspect.isclass(kind) and kind.__module__ == module.__name__
            if own and issubclass(kind, Group) and not inspect.isabstract(kind):
                yield kind


GROUPS = {kind.__name__: kind for kind in every_group() if kind.__name__ not in NO_GROUP}


def numbers(g: Element) -> list[float]:
    return [n for part in g for n in numbers(part)] if isinstance(g, tuple) else [float(g)]


def broken_law(group: Group) -> str:
    """Name of the first law that fails, empty when all hold; on drawn elements."""
    few = group.sample(6, torch.Generator().manual_seed(0))
    e, of = group.identity, group.compose

    def near(g: Element, h: Element) -> bool:
        return numbers(g) == pytest.approx(numbers(h), rel=1e-9, abs=1e-9)

    def same(g: Element, h: Element) -> bool:
        return bool(g == h) if group.exact else near(g, h)

    if not re.fullmatch(r"[A-Za-z0-9_.-]+", group.name):
        return "name"
    if few != group.sample(6, torch.Generator().manual_seed(0)) or len(set(few)) < 2:
        return "sampling"
    if not all(same(of(e, g), g) and same(of(g, e), g) for g in few):
        return "identity"
    if not all(same(of(g, group.inverse(g)), e) for g in few):
        return "inverse"
    if not all(same(of(of(g, h), k), of(g, of(h, k))) for g, h, k in product(few, repeat=3)):
        return "associativity"
    for x in group.generators():
        there = of(group.element(x, 0.3), group.element(x, 0.4))
        if not near(group.element(x, 0.0), e) or not near(there, group.element(x, 0.7)):
            return "one parameter"
    if group.order is not None:
        listed = list(group.elements())
        if listed[0] != e or len(set(listed)) != group.order or not set(few) <= set(listed):
            return "enumeration"
    return ""


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_obeys_its_laws(name: str) -> None:
    assert broken_law(GROUPS[name](*GIVEN.get(name, ()))) == ""


def test_the_walk_finds_the_groups() -> None:
    assert {"Cyclic", "Symmetric", "Orthogonal", "Translations"} <= GROUPS.keys()


@dataclass(frozen=True)
class Unwrapped(Cyclic):
    def compose(self, g: int, h: int) -> int:
        return g + h


@dataclass(frozen=True)
class Restless(Cyclic):
    def sample(self, count: int, generator: torch.Generator) -> list[int]:
        return torch.randint(self.n, (count,)).tolist()


@dataclass(frozen=True)
class Slow(Orthogonal):
    def element(self, generator: torch.Tensor, parameter: float) -> Rows:
        return super().element(generator, parameter**2)


@pytest.mark.parametrize(
    ("spoilt", "law"),
    [(Unwrapped(4), "inverse"), (Restless(99), "sampling"), (Slow(3), "one parameter")],
    ids=lambda x: getattr(x, "name", x),
)
def test_the_laws_see_what_is_no_group(spoilt: Group, law: str) -> None:
    assert broken_law(spoilt) == law
