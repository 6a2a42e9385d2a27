"""Scaling analysis: all diagonal symmetries of a trace, as members with their units and legs.

What the constraints on exponents leave free is the complete diagonal group that the operations
with a rule show. Units with the same legs make one member, and operations that tell units apart
split a member's units into blocks (matrices act on those).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.weights.search.entries import LARGEST_PAIR, entries, table
from eqtoolbox.weights.search.labelled import labelled
from eqtoolbox.weights.search.member import Member
from eqtoolbox.weights.search.spans import Span, Spans
from eqtoolbox.weights.tracing.exponents import Exponent, pin
from eqtoolbox.weights.tracing.propagation import LARGEST, Propagation
from eqtoolbox.weights.tracing.rules import propagate
from eqtoolbox.weights.tracing.system import Linear
from eqtoolbox.weights.tracing.trace import Trace
from eqtoolbox.weights.tracing.unknowns import fill, fix_unread

Kind = Literal["scale", "sign", "label"]


def members(
    trace: Trace, mode: Kind = "scale", largest: float = LARGEST
) -> tuple[list[Member], Propagation]:
    """Members of the diagonal group that leaves a trace's loss unchanged; how they were found."""
    found, state = each_member(trace, mode, largest)
    return list(found), state


def each_member(
    trace: Trace, mode: Kind = "scale", largest: float = LARGEST
) -> tuple[Iterator[Member], Propagation]:
    """The same, one after the other: the indices of all of them take more than all the rest.

    Args:
        trace: of the loss.
        mode: "scale" and "sign", see `Propagation`; "label": units that may change places.
        largest: constant before a root or a division that may be an epsilon.
    """
    if mode == "label":
        state = propagate(trace, trace.loss, None)
        return labelled(state, trace), state
    state = propagate(trace, trace.loss, lambda s: fill(s, trace), mode, largest)
    pin(state.system, state.of(trace.loss).exponent)
    state.system.settle()
    fix_unread(state)
    return _members(state, trace), state


def _members(state: Propagation, trace: Trace) -> Iterator[Member]:
    spans = Spans(state, trace).found()
    shapes = {n: v.shape for n, v in trace.parameters.items()}
    carried = {n: state.carried[v.number] for n, v in trace.parameters.items()}
    gains = {n for n, v in trace.parameters.items() if v.number in state.gains}
    gated = _Touched(state, (c.exponent for c in state.gated))
    normalised = _Touched(state, state.normalised)
    told = _separated(state)
    for span in spans:
        units = table(span)
        if units is None:
            what = (
                f"differences of pairs of more than {LARGEST_PAIR} entries: such scales are missed"
            )
            state.pinned.note(what, {leg.label[0]: None for leg in span.legs})
        if units is None or not units.count:
            continue
        own = tuple(entries(span, units, carried, shapes))
        names = {e.name for e in own}
        yield Member(
            own,
            units.count,
            _blocks(span, told.get(span.number, set()), units.count),
            gated=gated.by(span),
            gain=bool(names & gains),
            normalised=normalised.by(span),
            shapes={n: shapes[n] for n in names},
            turns=state.mode == "sign",
        )


def _blocks(span: Span, told: set[int], count: int) -> NDArray[np.int64]:
    """Units that nothing tells apart, together; each alone where they are not one an index."""
    sizes = [atom.size for atom in span.kind]
    if not span.whole or span.pair is not None or count != math.prod(sizes):
        return np.arange(count).reshape(-1, 1)
    order = [*sorted(told), *(i for i in range(len(sizes)) if i not in told)]
    grid = np.arange(count).reshape(sizes).transpose(order)
    return grid.reshape(math.prod(sizes[i] for i in told), -1)


class _Touched:
    """Which spans scale any of some tensors."""

    def __init__(self, state: Propagation, exponents: Iterable[Exponent]) -> None:
        self.forms: dict[int, list[Linear]] = defaultdict(list)
        for exponent in exponents:
            for terms in exponent.values():
                for form in terms.values():
                    reduced = state.system.reduce(form)
                    for unknown in reduced:
                        self.forms[unknown].append(reduced)

    def by(self, span: Span) -> bool:
        """Whether one of these tensors is scaled by a unit."""
        return any(
            abs(sum(c * form.get(u, 0.0) for u, c in part.items())) > 1e-6
            for part in span.parts.values()
            for unknown in part
            for form in self.forms.get(unknown, ())
        )


def _separated(state: Propagation) -> dict[int, set[int]]:
    """For every free unknown the atoms of its kind that an operation tells apart, by number."""
    found: dict[int, set[int]] = defaultdict(set)
    for carried, axes in state.separations:
        for choice, terms in carried.exponent.items():
            for slots, form in terms.items():
                told = [carried.atom(choice, s) for s in slots if axes is None or s[0] in axes]
                if not told:
                    continue
                for unknown in state.system.reduce(form):
                    kind = state.system.kinds[unknown]
                    found[unknown].update(
                        i for i, atom in enumerate(kind) if any(atom is t for t in told)
                    )
    return found
