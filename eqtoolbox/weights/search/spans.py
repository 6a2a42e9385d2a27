"""Spans: the free unknowns of a system as sets of units, each independent of those before it.

A component that is mean-free along some atoms stands for whole units, one an index, where the
same legs solve the system with every smaller set of these atoms too.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from eqtoolbox.weights.tracing.blocks import blocks
from eqtoolbox.weights.tracing.dims import Dim
from eqtoolbox.weights.tracing.propagation import Propagation
from eqtoolbox.weights.tracing.system import Linear
from eqtoolbox.weights.tracing.trace import Trace
from eqtoolbox.weights.tracing.unknowns import Label

Part = tuple[int, ...]  # numbers of atoms within a kind
_SMALL = 1e-6


@dataclass(frozen=True)
class SpanLeg:
    """A component of a parameter, the slot of each atom of the kind, and the rate."""

    label: Label
    slots: tuple[tuple[int, int], ...]
    rate: float


@dataclass(frozen=True)
class Span:
    """Units over the indices of some atoms: `free` are the sets that no earlier span covers.

    A kind with an atom twice (`pair`: its two places) has units {i, j}, of one sign or of two.
    """

    number: int
    kind: tuple[Dim, ...]
    legs: tuple[SpanLeg, ...]
    sign: int
    whole: bool
    free: frozenset[Part]
    parts: Mapping[Part, Linear]  # every component in free unknowns

    @property
    def pair(self) -> tuple[int, int] | None:
        return pair_of(self.kind)


def pair_of(kind: tuple[Dim, ...]) -> tuple[int, int] | None:
    """The two places of an atom that occurs twice."""
    for j, i in itertools.combinations(range(len(kind)), 2):
        if kind[i] is kind[j]:
            return j, i
    return None


@dataclass
class _Echelon:
    """Vectors in reduced form, over the rationals or over the field of two."""

    binary: bool
    rows: dict[int, dict[int, float]] = field(default_factory=dict)

    def add(self, vector: Linear) -> bool:
        """Whether a vector depends on none before it; then it is one of them."""
        left = {k: v % 2 if self.binary else v for k, v in vector.items()}
        left = {k: v for k, v in left.items() if abs(v) > _SMALL}
        pending = [k for k in left if k in self.rows]
        while pending:
            for key in pending:
                factor = left.get(key, 0.0)
                for k, v in self.rows[key].items():
                    total = left.get(k, 0.0) - factor * v
                    left[k] = total % 2 if self.binary else total
            left = {k: v for k, v in left.items() if abs(v) > _SMALL}
            pending = [k for k in left if k in self.rows]
        if not left:
            return False
        pivot = max(left)
        self.rows[pivot] = {k: v / left[pivot] for k, v in left.items()}
        return True


class Spans:
    """The spans of a state, largest kinds first, then in the order of parameters."""

    def __init__(self, state: Propagation, trace: Trace) -> None:
        self.state, self.trace, self.system = state, trace, state.system
        self.binary = state.mode == "sign"
        self.numbers = {
            (*label, self.system.signs.get(u, 0)): u
            for u, label in enumerate(self.system.labels)
            if label is not None
        }
        self.moved: dict[int, list[tuple[Label, float]]] = defaultdict(list)
        for unknown, label in enumerate(self.system.labels):
            if label is not None:
                for u, c in self.system.reduce({unknown: 1.0}).items():
                    self.moved[u].append((label, round(c, 9)))
        self.covered: dict[object, _Echelon] = {}

    def found(self) -> list[Span]:
        """All of them, in the order of the parameters that they move."""
        size = {u: sum(self._entries(label) for label, _ in legs) for u, legs in self.moved.items()}
        # of dependent ones those that move most are left out
        order = sorted(self.moved, key=lambda u: (-len(self.system.kinds[u]), size[u], -u))
        spans = [span for u in order if (span := self._span(u)) is not None]
        return sorted(spans, key=lambda s: self.numbers[(*s.legs[0].label, s.sign)])

    def _entries(self, label: Label) -> int:
        """Number of entries of a parameter that a component is about."""
        name, choice, _ = label
        axes = self.state.carried[self.trace.parameters[name].number].axes
        pieces = (blocks(axis)[k] for axis, k in zip(axes, choice, strict=True))
        return math.prod(s.size for piece in pieces for s in piece.strides)

    def _span(self, unknown: int) -> Span | None:
        kind, sign = self.system.kinds[unknown], self.system.signs.get(unknown, 0)
        legs = tuple(self._leg(kind, label, rate) for label, rate in self.moved[unknown])
        if legs[0].rate < 0:
            legs = tuple(SpanLeg(leg.label, leg.slots, -leg.rate) for leg in legs)
        top: Part = tuple(range(len(kind)))
        labelled = {part: self._labelled(kind, legs, sign, part) for part in _parts(kind, sign)}
        if not self._echelon(kind, top, sign).add(self._key(labelled[top])):
            return None
        parts = {part: self._solved(vector) for part, vector in labelled.items()}
        whole = all(solved is not None for solved in parts.values())
        free = {top}
        for part, vector in labelled.items() if whole else ():
            if part != top and self._echelon(kind, part, sign).add(self._key(vector)):
                free.add(part)
        solved = {p: s for p, s in parts.items() if s is not None and (whole or p == top)}
        return Span(unknown, kind, legs, sign, whole, frozenset(free), solved)

    def _leg(self, kind: tuple[Dim, ...], label: Label, rate: float) -> SpanLeg:
        """A component, with the slots in the order of the kind's atoms."""
        name, choice, slots = label
        carried = self.state.carried[self.trace.parameters[name].number]
        left = list(slots)
        ordered = []
        for atom in kind:
            slot = next(s for s in left if carried.atom(choice, s) is atom)
            left.remove(slot)
            ordered.append(slot)
        return SpanLeg(label, tuple(ordered), rate)

    def _echelon(self, kind: tuple[Dim, ...], part: Part, sign: int) -> _Echelon:
        pair = pair_of(kind)
        both = sign if pair is not None and set(pair) <= set(part) else 0
        key = (tuple(sorted(id(kind[i]) for i in part)), both)
        return self.covered.setdefault(key, _Echelon(self.binary))

    def _key(self, vector: Linear) -> Linear:
        """What is compared: entries of parameters for signs, else free unknowns."""
        if self.binary:
            return vector
        return {u: c for u, c in vector.items() if u not in self.system.solved}

    def _labelled(
        self, kind: tuple[Dim, ...], legs: tuple[SpanLeg, ...], sign: int, part: Part
    ) -> Linear:
        """The same rates on the components along a part of the atoms, by unknown (-1: none)."""
        total: dict[int, float] = defaultdict(float)
        pair = pair_of(kind)
        both = pair is not None and set(pair) <= set(part)
        once = pair is not None and len(set(pair) & set(part)) == 1
        for leg in legs:
            name, choice, _ = leg.label
            options = [(part, 1.0)]
            if once and pair is not None:
                options.append((tuple(pair[1] if i == pair[0] else i for i in part), float(sign)))
            for chosen, factor in options:
                slots = tuple(sorted(leg.slots[i] for i in chosen))
                number = self.numbers.get((name, choice, slots, sign if both else 0), -1)
                total[number] += factor * leg.rate
        return {u: c for u, c in total.items() if self._differ(c, 0.0)}

    def _differ(self, first: float, second: float) -> bool:
        """Whether two rates are not the same; for signs, modulo two."""
        difference = abs(first - second)
        return (difference % 2 if self.binary else difference) > _SMALL

    def _solved(self, vector: Linear) -> Linear | None:
        """A vector of the unknowns in the free ones; None where it breaks a constraint."""
        free = {u: c for u, c in vector.items() if u in self.moved}
        total: dict[int, float] = defaultdict(float)
        for u, c in free.items():
            for label, rate in self.moved[u]:
                total[self._number(u, label)] += c * rate
        keys = total.keys() | vector.keys()
        broken = any(self._differ(total.get(k, 0.0), vector.get(k, 0.0)) for k in keys)
        return None if broken else free

    def _number(self, unknown: int, label: Label) -> int:
        """The unknown of a label that a free one moves."""
        return self.numbers[(*label, self.system.signs.get(unknown, 0))]


def _parts(kind: tuple[Dim, ...], sign: int) -> Iterator[Part]:
    """All sets of its atoms that units have a part along; of the two places of one, the first."""
    pair = pair_of(kind)
    for size in range(len(kind), -1, -1):
        for part in itertools.combinations(range(len(kind)), size):
            if pair is not None:
                second_alone = pair[1] in part and pair[0] not in part
                if second_alone or (sign < 0 and not set(pair) & set(part)):
                    continue
            yield part
