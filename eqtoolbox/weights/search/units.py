"""Units and heads that may change places or signs, proposed from continuous symmetries."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from eqtoolbox.weights.families.general_linear import MatrixSymmetry
from eqtoolbox.weights.forms.gram import MatrixLeg

if TYPE_CHECKING:  # for types alone
    from eqtoolbox.weights.search.member import Entry, Member
from eqtoolbox.weights.families.discrete import Permutation, SignFlip, Slots, slots, twice


def propose_permutations(members: "Iterable[Member]") -> Iterator[Permutation]:
    """Neighbours exchanged, within every block of a member's units by itself."""
    for member in members:
        owned, along = slots(member), slots(replace(member, entries=member.along))
        if len(along) < len(member.along) or not all(len(e.rates) for e in member.entries):
            continue  # statistics that do not move along, or a parameter without entries
        for number, block in enumerate(member.blocks if owned else ()):
            name = member.name if len(member.blocks) == 1 else f"{member.name} {number}"
            own, statistics = owned, along
            if not np.array_equal(block, np.arange(member.units)):
                chosen = torch.as_tensor(block)
                own, statistics = (
                    tuple(replace(s, positions=s.positions[chosen]) for s in some)
                    for some in (owned, along)
                )
            yield Permutation(name=name, dimension=len(block) - 1, slots=own, statistics=statistics)


def propose_heads(found: list[MatrixSymmetry]) -> Iterator[Permutation]:
    """Heads exchanged: all that a head owns in query, key, value and output at once.

    A query-key and a value-output group belong together when they follow each other and have as
    many heads; rotary groups own a pair of features a frequency.
    """
    for first, second in pairwise(m for m in found if m.blocks > 1):
        heads = second.blocks
        if first.blocks % heads or _parent(first.names[0]) != _parent(second.names[0]):
            continue
        owned = []
        for leg in (*first.legs, *second.legs):
            owned.append(Slots(leg.name, leg.axis, leg.positions.reshape(heads, -1)))
        name = f"{first.name.split('-')[0]}-{second.name.split('-')[-1]}"
        yield Permutation(
            name=f"{name} heads", dimension=heads - 1, slots=tuple(owned), whole_heads=True
        )
        yield from _grouped_queries(name, heads, (*first.legs, *second.legs))


def _parent(parameter: str) -> str:
    """`layers.0.attention` for `layers.0.attention.query.weight`."""
    return re.sub(r"[./]?[^./]*[./][^./]*$", "", parameter)


def _grouped_queries(name: str, heads: int, legs: tuple[MatrixLeg, ...]) -> Iterator[Permutation]:
    """Query heads that share a key and value: all that they own in query and output."""
    copies = {leg.positions.shape[1] for leg in legs} - {1}
    if len(copies) != 1:
        return
    queries = copies.pop()
    wide = [leg for leg in legs if leg.positions.shape[1] == queries]
    split = [leg.positions.reshape(heads, -1, *leg.positions.shape[1:]) for leg in wide]
    for head in range(heads):
        owned = tuple(
            Slots(leg.name, leg.axis, of[head].transpose(0, 1).reshape(queries, -1))
            for leg, of in zip(wide, split, strict=True)
        )
        yield Permutation(
            name=f"{name} queries of head {head}",
            dimension=queries - 1,
            slots=owned,
            whole_heads=True,
        )


def across_axes(members: "Iterable[Member]") -> dict[str, None]:
    """Parameters in which units that change sign lie across axes twice: they are not proposed."""
    return {name: None for m in members for name in twice(_odd(m))}


def _odd(member: "Member") -> "tuple[Entry, ...]":
    return tuple(e for e in member.entries if e.rates[0] % 2 == 1)


def propose_sign_flips(members: "Iterable[Member]") -> Iterator[SignFlip]:
    """Units that an odd number of exponents flips."""
    for member in members:
        owned = slots(replace(member, entries=_odd(member)))
        if owned:
            yield SignFlip(name=member.name, dimension=member.units, slots=owned)
