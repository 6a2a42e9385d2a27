"""Exponents: how much every entry of a tensor is scaled, by components of its blocks.

A tensor times e^x: for every choice of one block an axis, x is a sum over sets S of slots (an axis,
an atom of its block) of a component, mean-free along S and constant along the rest. A component
is a number times a linear form in the unknowns; what is missing is zero.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from eqtoolbox.weights.tracing.blocks import Choice, Slot, blocks, runs, size_of, together
from eqtoolbox.weights.tracing.dims import Dim, find
from eqtoolbox.weights.tracing.system import Linear, System, combined

Slots = tuple[Slot, ...]
Terms = Mapping[Slots, Linear]
Exponent = Mapping[Choice, Terms]
ZERO: Exponent = {}
WILD: Terms = MappingProxyType({})  # of a block that takes no part: anything goes


@dataclass
class Carried:
    """A tensor's axes, and its exponent once the structure is final."""

    axes: list[Dim]
    exponent: Exponent = field(default_factory=dict)

    def atom(self, choice: Choice, slot: Slot) -> Dim:
        """The atom at a slot."""
        axis, k = slot
        return blocks(self.axes[axis])[choice[axis]].strides[k].atom


def choices(axes: Iterable[Dim]) -> Iterator[Choice]:
    """All blocks of a tensor on these axes."""
    return itertools.product(*(range(len(blocks(a))) for a in axes))


def masked(carried: Carried, wanted: set[Choice]) -> Exponent:
    """The exponent, with all blocks but those wanted left open."""
    return {**carried.exponent, **{c: WILD for c in choices(carried.axes) if c not in wanted}}


def times(exponent: Exponent, factor: float) -> Exponent:
    """The exponent of a power."""
    return {
        choice: terms
        if terms is WILD
        else {s: {u: c * factor for u, c in form.items()} for s, form in terms.items()}
        for choice, terms in exponent.items()
    }


def plus(first: Exponent, second: Exponent, factor: float = 1.0) -> Exponent:
    """The exponent of a product of tensors on the same axes."""
    if not second:
        return first
    total = dict(first)
    for choice, terms in second.items():
        if terms is WILD or total.get(choice) is WILD:
            total[choice] = WILD
            continue
        own = dict(total.get(choice, {}))
        for slots, form in terms.items():
            own[slots] = combined(own.get(slots, {}), form, factor)
        total[choice] = {slots: form for slots, form in own.items() if form}
    return total


def swapped(carried: Carried, choice: Choice, slots: Slots, renamed: Sequence[Slot]) -> bool:
    """Whether the two slots of an atom that occurs twice change their order when renamed."""
    own = [carried.atom(choice, s) for s in slots]
    for j, i in itertools.combinations(range(len(own)), 2):
        if own[i] is own[j]:
            return renamed[j] > renamed[i]
    return False


def renamed(
    system: System, carried: Carried, choice: Choice, terms: Terms, names: Mapping[Slot, Slot]
) -> Terms:
    """Components with their slots renamed; an antisymmetric one changes sign when two swap."""
    if terms is WILD:
        return terms
    result: dict[Slots, Linear] = {}
    for slots, form in terms.items():
        new = [names[s] for s in slots]
        signed = system.signs and any(u in system.signs for u in form)
        if signed and swapped(carried, choice, slots, new):
            form = {u: -c if system.signs.get(u) == -1 else c for u, c in form.items()}
        result[tuple(sorted(new))] = form
    return result


def lift(
    system: System, carried: Carried, where: Mapping[int, int], axes: Sequence[Dim]
) -> Exponent:
    """The exponent on wider axes that a tensor is broadcast to; `where` maps its own to these."""
    if not carried.exponent:
        return ZERO
    if len(axes) == len(where) and all(
        i == w and find(carried.axes[i]) is find(axes[w]) for i, w in where.items()
    ):
        return carried.exponent
    kept = {w: i for i, w in where.items() if size_of(carried.axes[i]) != 1}
    options = [[0] if w in kept else range(len(blocks(a))) for w, a in enumerate(axes)]
    result: dict[Choice, Terms] = {}
    for choice, terms in carried.exponent.items():
        names = {s: (where[s[0]], s[1]) for slots in terms for s in slots}
        moved = renamed(system, carried, choice, terms, names)
        for wide in itertools.product(*options):
            result[tuple(choice[kept[w]] if w in kept else n for w, n in enumerate(wide))] = moved
    return result


def contract(
    system: System, exponent: Exponent, axes: Sequence[Dim], gone: Iterable[int]
) -> Exponent:
    """The exponent after a sum over axes, along which it has to be constant."""
    dropped = set(gone)
    kept = [a for a in range(len(axes)) if a not in dropped]
    names = {a: i for i, a in enumerate(kept)}
    groups: dict[Choice, list[Terms]] = defaultdict(list)
    for choice, terms in exponent.items():
        groups[tuple(choice[a] for a in kept)].append(terms)
    total = math.prod(len(blocks(axes[a])) for a in dropped)
    result: dict[Choice, Terms] = {}
    for choice, members in groups.items():
        if any(terms is WILD for terms in members):
            result[choice] = WILD
            continue
        inside = [_constant(system, terms, names) for terms in members]
        if len(inside) < total:
            inside.append({})
        first = inside[0]
        for other in inside[1:]:
            for slots in first.keys() | other.keys():
                system.vanish(combined(first.get(slots, {}), other.get(slots, {}), -1.0))
        reduced = {slots: system.reduce(form) for slots, form in first.items()}
        left = {slots: form for slots, form in reduced.items() if form}
        if left:
            result[choice] = left
    return result


def _constant(system: System, terms: Terms, names: Mapping[int, int]) -> Terms:
    """Components that touch no axis but the named ones; the others must vanish."""
    kept: dict[Slots, Linear] = {}
    for slots, form in terms.items():
        if all(a in names for a, _ in slots):
            kept[tuple((names[a], k) for a, k in slots)] = form
        else:
            system.vanish(form)
    return kept


def pin(system: System, exponent: Exponent) -> None:
    """The tensor must not be scaled at all."""
    for terms in exponent.values():
        for form in terms.values():
            system.vanish(form)


def equate(system: System, first: Exponent, second: Exponent) -> None:
    """Two tensors on the same axes must be scaled alike."""
    if first is not second:
        pin(system, plus(first, second, -1.0))


def picked(exponent: Exponent, axis: int, table: Mapping[int, int], drop: bool) -> Exponent:
    """The part in some blocks of an axis, as they are called behind it; `drop` takes it away."""
    result: dict[Choice, Terms] = {}
    for choice, terms in exponent.items():
        if choice[axis] not in table:
            continue
        if drop:
            left = {
                tuple((a - (a > axis), k) for a, k in slots): form for slots, form in terms.items()
            }
            result[choice[:axis] + choice[axis + 1 :]] = terms if terms is WILD else left
        else:
            result[(*choice[:axis], table[choice[axis]], *choice[axis + 1 :])] = terms
    return result


def viewed(
    system: System, carried: Carried, new: Sequence[Dim], lost: list[str] | None = None
) -> Exponent:
    """The exponent on other axes of the same entries in the same order.

    What does not line up must be constant there; `lost` hears of it.
    """
    exponent, old = carried.exponent, carried.axes
    if not exponent:
        return ZERO
    tables, uneven = lined_up(old, new)
    if uneven:
        if lost is not None:
            lost.append("a view that does not line up with another")
        kept = [i for i in range(len(old)) if i not in uneven]
        rest = Carried([old[i] for i in kept], contract(system, exponent, old, uneven))
        carried = Carried(old, lift(system, rest, dict(enumerate(kept)), old))
    result: dict[Choice, Terms] = {}
    for choice, terms in carried.exponent.items():
        places = [0] * len(new)
        names: dict[Slot, Slot] = {}
        many: list[tuple[list[int], list[Choice]]] = []
        for left, right, table in tables:
            options = table[tuple(choice[i] for i in left)]
            names.update(options[0][1])
            many.append((right, [c for c, _ in options]))
        moved = renamed(system, carried, choice, terms, names)
        for combination in itertools.product(*(choices for _, choices in many)):
            for (right, _), own in zip(many, combination, strict=True):
                for axis, number in zip(right, own, strict=True):
                    places[axis] = number
            result[tuple(places)] = moved
    return result


Table = Mapping[Choice, list[tuple[Choice, dict[Slot, Slot]]]]


def lined_up(
    old: Sequence[Dim], new: Sequence[Dim]
) -> tuple[list[tuple[list[int], list[int], Table]], set[int]]:
    """For every run of axes, where each choice of blocks goes; and axes that do not line up."""
    tables: list[tuple[list[int], list[int], Table]] = []
    uneven: set[int] = set()
    for left, right in runs([size_of(d) for d in old], [size_of(d) for d in new]):
        before, after = together([old[i] for i in left]), together([new[i] for i in right])
        table: dict[Choice, list[tuple[Choice, dict[Slot, Slot]]]] = {}
        if before.keys() == after.keys():
            for place, (choice, slots) in before.items():
                other, there = after[place]
                names = {
                    (left[a], k): (right[b], m) for (a, k), (b, m) in zip(slots, there, strict=True)
                }
                table[choice] = [(other, names)]
        else:
            uneven.update(left)
            everywhere = [(c, dict[Slot, Slot]()) for c, _ in after.values()]
            table = {choice: everywhere for choice, _ in before.values()}
        tables.append((left, right, table))
    return tables, uneven
