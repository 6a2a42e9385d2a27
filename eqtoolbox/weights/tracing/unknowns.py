"""Unknowns: where the exponents of parameters start, and which of them nothing reads."""

import itertools
from collections import defaultdict
from collections.abc import Iterator

from eqtoolbox.weights.tracing.blocks import Choice, Slot, blocks
from eqtoolbox.weights.tracing.dims import SMALL, atoms
from eqtoolbox.weights.tracing.exponents import Carried, Exponent, Slots, Terms, choices
from eqtoolbox.weights.tracing.needed import Needed
from eqtoolbox.weights.tracing.propagation import Propagation
from eqtoolbox.weights.tracing.system import LAST, Linear
from eqtoolbox.weights.tracing.trace import Trace

MOST = 7  # atoms of a block up to which every set of them has a component

Label = tuple[str, Choice, Slots]


def fill(state: Propagation, trace: Trace) -> None:
    """One unknown for every set of atoms of every block of a parameter; unread ones stay.

    Zeros that are joined to something have unknowns, too, as they may be scaled by anything.
    """
    needed = Needed.of(state, trace.live(trace.loss), trace.loss)
    state.wanted, state.masks = needed.values, needed.masks
    for name, value in trace.parameters.items():
        carried = state.carried[value.number]
        carried.exponent = _field(state, name, carried)
        wanted = needed.values.get(value.number, set())
        unread = [c for c in carried.exponent if wanted is not None and c not in wanted]
        for choice in unread:
            for form in carried.exponent[choice].values():
                state.system.vanish(form)
        if 0 < len(unread) < len(carried.exponent):
            names = dict.fromkeys(f"{name}{_place(carried, choice)}" for choice in unread)
            state.pinned.note("entries that this loss does not read, left out", names)
    for carried in state.vacant:
        carried.exponent = _anything(state, carried)


def _anything(state: Propagation, carried: Carried) -> Exponent:
    """Unknowns of no parameter, which whatever they meet determines."""
    exponent: dict[Choice, Terms] = {}
    for choice in choices(carried.axes):
        exponent[choice] = terms = dict[Slots, Linear]()
        for chosen in _subsets(_slots(carried, choice)):
            kind = tuple(carried.atom(choice, slot) for slot in chosen)
            if len({*map(id, kind)}) == len(kind):
                terms[chosen] = {state.system.unknown(kind, rank=LAST): 1.0}
    return exponent


def _slots(carried: Carried, choice: Choice) -> list[Slot]:
    """Where a block varies."""
    return [
        (axis, k)
        for axis, number in enumerate(choice)
        for k, stride in enumerate(blocks(carried.axes[axis])[number].strides)
        if stride.atom.kind != "flat"
    ]


def _place(carried: Carried, choice: Choice) -> str:
    """A block as slices: `[:, 4:8]`; what lies in several pieces along an axis from end to end."""
    parts = []
    for axis, number in zip(carried.axes, choice, strict=True):
        block = blocks(axis)[number]
        last = sum((s.size - 1) * s.step for s in block.strides)
        steps = {s.step for s in block.strides}
        step = f":{min(steps)}" if steps and min(steps) > 1 else ""
        whole = len(blocks(axis)) == 1
        parts.append(":" if whole else f"{block.offset}:{block.offset + last + 1}{step}")
    return f"[{', '.join(parts)}]"


def _field(state: Propagation, name: str, carried: Carried) -> Exponent:
    exponent: dict[Choice, Terms] = {}
    if any(atom.kind == "flat" for axis in carried.axes for atom in atoms(axis)):
        what = f"an axis of more than {SMALL} entries in pieces that do not line up: scales that"
        state.pinned.note(f"{what} vary along it are missed", {name: None})
    for choice in choices(carried.axes):
        slots = _slots(carried, choice)
        if len(slots) > MOST:
            what = f"more than {MOST} atoms in one parameter: only scales along one axis are seen"
            state.pinned.note(what, {name: None})
        exponent[choice] = {
            chosen: _unknowns(state, (name, choice, chosen), carried) for chosen in _subsets(slots)
        }
    return exponent


def _subsets(slots: list[Slot]) -> Iterator[Slots]:
    if len(slots) <= MOST:
        for size in range(len(slots) + 1):
            yield from itertools.combinations(slots, size)
        return
    yield ()
    for _, own in itertools.groupby(slots, key=lambda slot: slot[0]):
        along = list(own)
        for size in range(1, len(along) + 1):
            yield from itertools.combinations(along, size)


def _unknowns(state: Propagation, label: Label, carried: Carried) -> Linear:
    """The unknowns of one component: two where an atom occurs twice, none that moves if thrice."""
    _, choice, slots = label
    kind = tuple(carried.atom(choice, s) for s in slots)
    axes = {axis for axis, _ in slots}
    rank = (1 + max(axes) if axes else 0) + (len(carried.axes) > 1) + 4 * (len(axes) > 1)
    repeated = len(kind) - len(set(map(id, kind)))
    both = (1,) if state.system.binary else (1, -1)
    signs = ((0,), both, (0,))[min(repeated, 2)]
    form = {state.system.unknown(kind, label, rank, sign): 1.0 for sign in signs}
    if repeated > 1:
        state.system.vanish(form)
        what = "one axis three times in a parameter: scales that vary along all three are missed"
        state.pinned.note(what, {label[0]: None})
    return form


def fix_unread(state: Propagation) -> None:
    """Blocks of a cut parameter that no constraint mentions are not read: they stay."""
    system = state.system
    mentioned = set(system.solved).union(*system.solved.values())
    by_block: dict[tuple[str, Choice], list[int]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for unknown, label in enumerate(system.labels):
        if label is not None:
            name, choice, _ = label
            counts[name] += (name, choice) not in by_block
            by_block[name, choice].append(unknown)
    for (name, _), unknowns in by_block.items():
        if counts[name] > 1 and not mentioned.intersection(unknowns):
            for unknown in unknowns:
                system.vanish({unknown: 1.0})
