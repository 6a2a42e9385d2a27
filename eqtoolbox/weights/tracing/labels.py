"""Labels: which atoms may be permuted, from the structure of a trace alone.

An atom whose indices meet no data, position or class is a set of units that may change places,
where the loss reads any of them.
An atom that has another beside it wherever it occurs is permuted for each index of that by itself;
two that are never apart are one.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from eqtoolbox.weights.tracing.blocks import blocks
from eqtoolbox.weights.tracing.dims import Dim, atoms, find
from eqtoolbox.weights.tracing.exponents import Carried
from eqtoolbox.weights.tracing.needed import Needed
from eqtoolbox.weights.tracing.propagation import Propagation
from eqtoolbox.weights.tracing.trace import Trace

_MOST = 4096  # blocks of a tensor up to which it is looked at


@dataclass(frozen=True)
class Permuted:
    """Atoms whose indices are alike, and those beside them for whose indices they move apart."""

    atoms: tuple[Dim, ...]
    beside: tuple[Dim, ...]


def permuted(state: Propagation, trace: Trace) -> Iterator[Permuted]:
    """The atoms of parameters that may be permuted; notes what a missing rule may have cost."""
    told = _told(state.named)
    held = dict.fromkeys(a for a in _read(state, trace) if a.size > 1 and a.kind == "atom")
    stopped: set[Dim] = set()
    for what, dims, sources in state.lost:
        own = {atom for dim in dims for atom in atoms(dim) if atom.size > 1} - told
        stopped |= own
        if own & held.keys():
            state.pinned.note(what, sources)
    free = [atom for atom in held if atom not in told and atom not in stopped]
    beside = _beside(state)
    done: set[Dim] = set()
    for atom in free:
        others = [a for a in free if a in beside.get(atom, ())]
        inseparable = [a for a in others if atom in beside.get(a, ())]
        if atom not in done:
            yield Permuted((atom, *inseparable), tuple(a for a in others if a not in inseparable))
        done.update(inseparable)


def _read(state: Propagation, trace: Trace) -> Iterator[Dim]:
    """The atoms of parameters, but for those of entries alone that the loss does not read."""
    needed = Needed.of(state, trace.live(trace.loss), trace.loss)
    for value in trace.parameters.values():
        own, wanted = state.carried[value.number], needed.values.get(value.number, set())
        for axis in own.axes if wanted is None else ():
            yield from atoms(axis)
        for choice in wanted or ():
            for axis, number in zip(own.axes, choice, strict=True):
                yield from (s.atom for s in blocks(axis)[number].strides)


def _told(dims: list[Dim]) -> set[Dim]:
    return {atom for dim in dims for atom in atoms(dim)}


def _beside(state: Propagation) -> dict[Dim, set[Dim]]:
    """For every atom those that are in each block with it, but for what mixes these."""
    found: dict[Dim, set[Dim]] = {}
    seen: set[tuple[int, ...]] = set()
    for carried in state.carried.values():
        axes = tuple(id(find(d)) for d in carried.axes)
        if axes not in seen:
            seen.add(axes)
            _gather(carried, found)
    for mixed, every in state.mixed:
        inside = _told(mixed)
        for atom in _told(every) - inside:
            if atom in found:
                found[atom] -= inside
    return found


def _gather(carried: Carried, found: dict[Dim, set[Dim]]) -> None:
    per_axis = [blocks(d) for d in carried.axes]
    if math.prod(map(len, per_axis)) > _MOST:
        for axis in carried.axes:
            found.update((atom, set()) for atom in atoms(axis))
        return
    for choice in itertools.product(*per_axis):
        own = [s.atom for block in choice for s in block.strides]
        for i, atom in enumerate(own):
            others = {b for j, b in enumerate(own) if j != i and b is not atom}
            found[atom] = found[atom] & others if atom in found else others
