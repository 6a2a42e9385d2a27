"""Labelled units: what changes places together when the indices of an atom do."""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from eqtoolbox.weights.families.discrete import twice
from eqtoolbox.weights.search.entries import UnitTable, entries
from eqtoolbox.weights.search.member import Member
from eqtoolbox.weights.search.spans import Span, SpanLeg
from eqtoolbox.weights.tracing.blocks import Choice, Slot, blocks
from eqtoolbox.weights.tracing.dims import Dim
from eqtoolbox.weights.tracing.exponents import Carried
from eqtoolbox.weights.tracing.labels import Permuted, permuted
from eqtoolbox.weights.tracing.propagation import Propagation
from eqtoolbox.weights.tracing.trace import Trace


def labelled(state: Propagation, trace: Trace) -> Iterator[Member]:
    """A member for every atom that may be permuted; a block for every index of those beside it."""
    moving = {**trace.parameters, **trace.statistics}
    shapes = {n: v.shape for n, v in moving.items()}
    carried = {n: state.carried[v.number] for n, v in moving.items()}
    held = _held(carried)
    for found in permuted(state, trace):
        together = Permuted(found.atoms, ())
        for tried in dict.fromkeys([found, together]):
            kind = (*tried.beside, *tried.atoms)
            count = math.prod(atom.size for atom in kind)
            span = Span(-1, kind, tuple(_legs(tried, held)), 0, True, frozenset(), {})
            every = np.arange(count)
            own = tuple(entries(span, UnitTable(count), carried, shapes))
            if not twice(own):
                yield Member(
                    tuple(e for e in own if e.name in trace.parameters),
                    count,
                    every.reshape(-1, math.prod(a.size for a in tried.atoms)),
                    gated=False,
                    gain=False,
                    normalised=False,
                    shapes={e.name: shapes[e.name] for e in own},
                    along=tuple(e for e in own if e.name in trace.statistics),
                )
                break
        else:
            what = "units across the axes of a parameter in two ways: their permutations are missed"
            state.pinned.note(what, {e.name: None for e in own})


Held = tuple[str, Choice, dict[Dim, list[Slot]]]  # a piece of a parameter, its slots by atom


def _held(carried: dict[str, Carried]) -> dict[Dim, list[Held]]:
    """For every atom the pieces of parameters that it is in."""
    found: dict[Dim, list[Held]] = {}
    for name, own in carried.items():
        per_axis = [blocks(d) for d in own.axes]
        for choice in itertools.product(*(range(len(pieces)) for pieces in per_axis)):
            where: dict[Dim, list[Slot]] = {}
            for axis, number in enumerate(choice):
                for k, stride in enumerate(per_axis[axis][number].strides):
                    where.setdefault(stride.atom, []).append((axis, k))
            for atom in where:
                found.setdefault(atom, []).append((name, choice, where))
    return found


def _legs(found: Permuted, held: dict[Dim, list[Held]]) -> Iterator[SpanLeg]:
    """Every slot that the first atom has in a parameter, with those of the others."""
    atom, *never_apart = found.atoms
    for name, choice, where in held[atom]:
        beside, after = (
            tuple(where[a][0] for a in some if a in where) for some in (found.beside, never_apart)
        )
        if len(beside) == len(found.beside):
            for slot in where[atom]:
                slots = (*beside, slot, *after)
                yield SpanLeg((name, choice, slots), slots, 1.0)
