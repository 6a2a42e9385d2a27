"""Laws of every group, uniformity of its samples, and groups that must fail."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product

import pytest
import torch

from eqtoolbox.symmetry.groups.group import (
    Cyclic,
    CyclicTranslation,
    Dihedral,
    Element,
    Flip,
    Group,
)

MEMBERS: list[Group] = [
    Cyclic(1),
    Cyclic(4),
    Cyclic(7),
    Dihedral(1),
    Dihedral(2),
    Dihedral(5),
    Flip(),
    CyclicTranslation(3),
    CyclicTranslation((2, 5)),
]


def broken_law(group: Group) -> str:
    """Name of the first group law that fails, empty when all hold."""
    elements, e = list(group.elements()), group.identity
    if elements[0] != e or len(set(elements)) != group.order:
        return "enumeration"
    for g in elements:
        if not group.compose(e, g) == g == group.compose(g, e):
            return "identity"
        inverse = group.inverse(g)
        if not group.compose(g, inverse) == e == group.compose(inverse, g):
            return "inverse"
    if any(group.compose(g, h) not in elements for g, h in product(elements, repeat=2)):
        return "closure"
    for g, h, k in product(elements, repeat=3):
        if group.compose(group.compose(g, h), k) != group.compose(g, group.compose(h, k)):
            return "associativity"
    return ""


def chi_square_z(group: Group, count: int, seed: int) -> float:
    """Standardised chi-square of `count` samples against the uniform distribution."""
    drawn = Counter(group.sample(count, torch.Generator().manual_seed(seed)))
    expected, freedom = count / group.order, group.order - 1
    square = sum((drawn[g] - expected) ** 2 / expected for g in group.elements())
    return (square - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("group", MEMBERS, ids=repr)
def test_group_laws_hold(group: Group) -> None:
    assert broken_law(group) == ""


@dataclass(frozen=True)
class ForgottenWrap(Cyclic):
    def compose(self, g: int, h: int) -> int:
        return g + h


@dataclass(frozen=True)
class OwnInverse(Cyclic):
    def inverse(self, g: int) -> int:
        return g


@dataclass(frozen=True)
class Midpoint(Cyclic):
    def compose(self, g: int, h: int) -> int:
        return (2 * g - h) % self.n


@dataclass(frozen=True)
class Repeating(Cyclic):
    def elements(self) -> Iterator[int]:
        return iter([0] * self.n)


@dataclass(frozen=True)
class Crooked(Cyclic):
    """A loop: identity, inverses and closure, but not associative."""

    def compose(self, g: int, h: int) -> int:
        table = (
            (0, 1, 2, 3, 4),
            (1, 0, 3, 4, 2),
            (2, 4, 0, 1, 3),
            (3, 2, 4, 0, 1),
            (4, 3, 1, 2, 0),
        )
        return table[g][h]

    def inverse(self, g: int) -> int:
        return g


@pytest.mark.parametrize(
    ("group", "law"),
    [
        (ForgottenWrap(4), "inverse"),
        (OwnInverse(4), "inverse"),
        (Midpoint(4), "identity"),
        (Repeating(4), "enumeration"),
        (Crooked(5), "associativity"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_group_laws_see_what_is_no_group(group: Group, law: str) -> None:
    assert broken_law(group) == law


def test_reflection_inverts_rotations_in_a_dihedral_group() -> None:
    group, s, r = Dihedral(5), (0, True), (1, False)
    assert group.compose(s, group.compose(r, s)) == group.inverse(r)
    assert group.compose(r, s) != group.compose(s, r)


@pytest.mark.parametrize("group", [g for g in MEMBERS if g.order != 1], ids=repr)
def test_samples_are_uniform(group: Group) -> None:
    assert abs(chi_square_z(group, count=6000, seed=0)) < 4.0


def test_uniformity_test_sees_a_missing_element() -> None:
    @dataclass(frozen=True)
    class Shy(Cyclic):
        def sample(self, count: int, generator: torch.Generator) -> list[Element]:
            return Cyclic(self.n - 1).sample(count, generator)

    assert chi_square_z(Shy(7), count=6000, seed=0) > 4.0


@pytest.mark.parametrize("group", MEMBERS, ids=repr)
def test_samples_depend_on_their_generator_alone(group: Group) -> None:
    before = torch.get_rng_state()
    draws = [group.sample(5, torch.Generator().manual_seed(3)) for _ in range(2)]
    torch.manual_seed(1)
    draws.append(group.sample(5, torch.Generator().manual_seed(3)))
    torch.set_rng_state(before)
    assert draws[0] == draws[1] == draws[2]
    group.sample(5, torch.Generator().manual_seed(4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(g in list(group.elements()) for g in draws[0])
    assert group.sample(0, torch.Generator()) == []


@pytest.mark.parametrize("group", MEMBERS, ids=repr)
def test_names_fit_records_and_equal_groups_are_equal_values(group: Group) -> None:
    assert set(group.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789")
    assert group == type(group)(**group.__dict__)
    assert len({group, type(group)(**group.__dict__)}) == 1
    assert group.exact


def test_square_translations_have_one_spelling() -> None:
    assert CyclicTranslation(4) == CyclicTranslation((4, 4))
    assert CyclicTranslation(4).shape == (4, 4)
    assert CyclicTranslation((2, 3)).order == 6


def test_large_groups_are_enumerated_lazily() -> None:
    assert list(islice(CyclicTranslation(10**6).elements(), 2)) == [(0, 0), (0, 1)]


def test_infinite_groups_have_no_list() -> None:
    class Integers(Group):
        name, order, identity = "integers", None, 0

        def compose(self, g: int, h: int) -> int:
            return g + h

        def inverse(self, g: int) -> int:
            return -g

        def sample(self, count: int, generator: torch.Generator) -> list[int]:
            return [1] * count

    with pytest.raises(ValueError, match="no finite list of elements; draw some with sample"):
        Integers().elements()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cyclic(0), r"n must be an integer >= 1, got 0"),
        (lambda: Cyclic(2.0), r"n must be an integer >= 1, got 2\.0"),
        (lambda: Cyclic(True), r"n must be an integer >= 1, got True"),
        (lambda: Dihedral(-1), r"n must be an integer >= 1, got -1"),
        (lambda: CyclicTranslation(0), r"height must be an integer >= 1, got 0"),
        (lambda: CyclicTranslation((3, 0)), r"width must be an integer >= 1, got 0"),
        (lambda: CyclicTranslation((3,)), r"size must be one integer or \(height, width\)"),
        (lambda: CyclicTranslation(3.5), r"size must be one integer or \(height, width\)"),
        (lambda: Cyclic(3).sample(-1, torch.Generator()), r"count must be >= 0, got -1"),
    ],
)
def test_bad_sizes_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
