"""A linear system of a few unknowns a row, eliminated as its rows come.

One unknown stands for a component of an exponent: what varies along some atoms, counted from their
first index, and is constant along the rest. Every constraint acts on all indices of a component
alike, so that one unknown stands for the product of (n - 1) over these atoms. Where an atom occurs
twice (a square matrix on one stream), indices are exchanged too: the symmetric and the
antisymmetric part are unknowns of their own. Signs are numbers modulo two, and have the first only.
"""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from eqtoolbox.weights.tracing.dims import Dim

Linear = Mapping[int, float]  # unknown: coefficient
LAST = 1000  # rank of an unknown of no parameter
_SMALL = 1e-9


def combined(first: Linear, second: Linear, factor: float = 1.0) -> Linear:
    """first + factor * second.

    Example:
        >>> combined({0: 1.0, 1: 1.0}, {1: 1.0, 2: 1.0}, -1.0)
        {0: 1.0, 2: -1.0}
    """
    if not second:
        return first
    total = dict(first)
    for unknown, c in second.items():
        total[unknown] = total.get(unknown, 0.0) + factor * c
    return {u: c for u, c in total.items() if abs(c) > _SMALL}


@dataclass
class System:
    """Unknowns with what they stand for, and those that constraints express by others."""

    binary: bool = False  # numbers modulo two
    kinds: list[tuple[Dim, ...]] = field(default_factory=list)  # atoms that it varies along
    labels: list[Any] = field(default_factory=list)  # where it starts
    ranks: list[int] = field(default_factory=list)  # higher ones are expressed by lower ones
    signs: dict[int, int] = field(default_factory=dict)  # of those with an atom twice: +1, -1
    solved: dict[int, Linear] = field(default_factory=dict)
    copies: dict[int, tuple[Hashable, Linear]] = field(default_factory=dict)  # see `copy`

    def unknown(
        self, kind: tuple[Dim, ...] = (), label: Hashable = None, rank: int = -1, sign: int = 0
    ) -> int:
        """A new one; `sign` says that it is a symmetric or antisymmetric part."""
        number = len(self.kinds)
        self.kinds.append(kind)
        self.labels.append(label)
        self.ranks.append(rank)
        if sign:
            self.signs[number] = sign
        return number

    def copy(self, form: Linear, order: Hashable) -> int:
        """An unknown for the numbers that a form stands for, picked in some order.

        It is compared with what was picked in the same order alone; against anything else it can
        but vanish.
        """
        number = self.unknown()
        self.copies[number] = order, form
        return number

    def settle(self) -> None:
        """Copies are what they stand for, now that all constraints are known."""
        for number, (_, form) in self.copies.items():
            self.solved[number] = self.reduce(form)

    def reduce(self, form: Linear) -> Linear:
        """The form in free unknowns."""
        if not any(u in self.solved for u in form):
            return {u: 1.0 for u, c in form.items() if c % 2} if self.binary else form
        total: dict[int, float] = {}
        for unknown, c in form.items():
            if unknown not in self.solved:
                total[unknown] = total.get(unknown, 0.0) + c
                continue
            self.solved[unknown] = self.reduce(self.solved[unknown])
            for other, d in self.solved[unknown].items():
                total[other] = total.get(other, 0.0) + c * d
        if self.binary:
            return {u: 1.0 for u, c in total.items() if c % 2}
        return {u: c for u, c in total.items() if abs(c) > _SMALL}

    def vanish(self, form: Linear) -> None:
        """A form must be zero; symmetric, antisymmetric and copied parts each by themselves."""
        if self.copies and any(u in self.copies for u in form):
            self._vanish_copies(form)
            form = {u: c for u, c in form.items() if u not in self.copies}
        if self.signs and any(u in self.signs for u in form):
            for sign in (0, 1, -1):
                self._eliminate({u: c for u, c in form.items() if self.signs.get(u, 0) == sign})
        else:
            self._eliminate(form)

    def _vanish_copies(self, form: Linear) -> None:
        orders: dict[Hashable, Linear] = {}
        for unknown, c in form.items():
            if unknown in self.copies:
                order, own = self.copies[unknown]
                orders[order] = combined(orders.get(order, {}), own, c)
        for own in orders.values():
            self.vanish(own)

    def _eliminate(self, form: Linear) -> None:
        left = self.reduce(form)
        if left:
            pivot = max(left, key=lambda u: (self.ranks[u], u))
            self.solved[pivot] = {u: -c / left[pivot] for u, c in left.items() if u != pivot}

    def free(self) -> list[int]:
        """Unknowns that nothing determines: a basis of what is left."""
        return [u for u in range(len(self.kinds)) if u not in self.solved]

    def dimension(self, unknown: int) -> int:
        """How many numbers one of the free unknowns stands for."""
        kind = self.kinds[unknown]
        sign = self.signs.get(unknown, 0)
        if not sign:
            return math.prod(a.size - 1 for a in kind)
        twice = next(a for k, a in enumerate(kind) if any(a is b for b in kind[:k]))
        n = twice.size
        pairs = n * (n - 1) // 2 if sign > 0 else (n - 1) * (n - 2) // 2
        return pairs * math.prod(a.size - 1 for a in kind if a is not twice)
