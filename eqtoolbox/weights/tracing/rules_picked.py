"""Rules of propagation for entries that are picked: by position, by number or by data."""

import itertools
from itertools import pairwise

import torch

from eqtoolbox.weights.tracing.blocks import blocks, size_of
from eqtoolbox.weights.tracing.dims import SMALL, Dim, cut, factor, find, row, shatter, unify
from eqtoolbox.weights.tracing.exponents import Carried, contract, lift, picked, pin
from eqtoolbox.weights.tracing.propagation import Propagation, made_by, rule, unknown
from eqtoolbox.weights.tracing.trace import Node, Value

ALIKE = "were taken for alike, so that scales of single entries are missed"


SPLITS = ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk",
          "tensor_split")  # fmt: skip
CUTS = ("select", "slice", "narrow", "unbind", *SPLITS)


@rule(*CUTS)
def _sliced(state: Propagation, node: Node) -> None:
    axis, parts, drop = pieces(node)
    for made, places in parts:
        if places.step > 1:
            _strided(state, node, axis, places)
        else:
            part(state, state.of(node.args[0]), made, axis, places.start, places.stop, drop)


def pieces(node: Node) -> tuple[int, list[tuple[Value, range]], bool]:
    """The axis that is cut, every result with its places along it, and whether the axis goes."""
    shape, split = node.args[0].shape, node.name in SPLITS
    axis = node.arg(2 if split else 1, "dim", 0) % len(shape)
    made = [o for o in node.outputs if o is not None]
    if split:
        ends = [*itertools.accumulate((o.shape[axis] for o in made), initial=0)]
        return axis, [(o, range(*e)) for o, e in zip(made, pairwise(ends), strict=True)], False
    if node.name == "slice":
        span = slice(node.arg(2, "start"), node.arg(3, "end"), node.arg(4, "step", 1))
        return axis, [(made[0], range(*span.indices(shape[axis])))], False
    if node.name == "narrow":
        return axis, [(made[0], range(node.args[2], node.args[2] + node.args[3]))], False
    first = node.args[2] % shape[axis] if node.name == "select" else 0
    return axis, [(o, range(first + k, first + k + 1)) for k, o in enumerate(made)], True


def met(dim: Dim, chosen: Dim, places: range) -> dict[int, int]:
    """For the blocks of an axis that are among those places the blocks of these alone."""
    known, table, step = {b.place: k for k, b in enumerate(blocks(chosen))}, {}, places.step
    for k, block in enumerate(blocks(dim)):
        offset, strides = block.place
        if offset in places:
            there = (offset - places.start) // step
            place = (there, tuple((n, apart // step) for n, apart in strides))
            if place in known:
                table[k] = known[place]
    return table


def part(
    state: Propagation, x: Carried, made: Value, axis: int, start: int, end: int, drop: bool = False
) -> Carried:
    """Entries start to end of an axis; `drop` takes an axis of one away."""
    chosen = cut(x.axes[axis], start, end)
    return _part(state, x, made, axis, chosen, range(start, end), drop)


def _strided(state: Propagation, node: Node, axis: int, places: range) -> None:
    """Every so many-th entry: one index of the fast factor, where the axis has such a one."""
    x, made = state.of(node.args[0]), made_by(node)
    size, step = size_of(x.axes[axis]), places.step
    if size % step == 0 and len(places) == size // step:
        slow, fast = factor(x.axes[axis], step)
        cut(fast, places.start, places.start + 1)
        _part(state, x, made, axis, slow, places, False)
    elif apart(x.axes[axis]):
        selected(state, x, axis, list(places), made)
    else:
        state.note(f"entries at a step of {step} {ALIKE}", node.args[0], dims=[x.axes[axis]])
        gathered(state, x, [axis], made, [state.told(len(places))])


def _part(
    state: Propagation, x: Carried, made: Value, axis: int, chosen: Dim, places: range, drop: bool
) -> Carried:
    axes = [chosen if a == axis else d for a, d in enumerate(x.axes)]
    if drop:
        axes.pop(axis)
    result = state.make(made, axes)

    def close() -> None:
        table = met(x.axes[axis], chosen, places)
        if len(table) == len(blocks(chosen)):
            result.exponent = picked(x.exponent, axis, table, drop)
            return
        rest = [a for a in range(len(x.axes)) if a != axis]  # flat: it must be constant
        left = Carried(
            [x.axes[a] for a in rest], contract(state.system, x.exponent, x.axes, [axis])
        )
        where = {i: a - (drop and a > axis) for i, a in enumerate(rest)}
        result.exponent = lift(state.system, left, where, axes)
        state.pinned.note(f"a part of an axis: its entries {ALIKE}", state.pinned.behind([made]))

    state.later(close)
    return result


@rule("glu")
def _glu(state: Propagation, node: Node) -> None:
    """A half times the sigmoid of the other."""
    x, made = state.of(node.args[0]), made_by(node)
    axis = node.arg(1, "dim", -1) % len(x.axes)
    half = made.shape[axis]
    ends = (0, half), (half, 2 * half)
    first, second = (part(state, x, made, axis, *end) for end in ends)
    for a, b in zip(first.axes, second.axes, strict=True):
        unify(a, b)
    state.separate(first)
    state.gated.append(first)
    result = state.make(made, first.axes)

    def close() -> None:
        pin(state.system, second.exponent)
        result.exponent = first.exponent

    state.later(close)


def gathered(
    state: Propagation, x: Carried, gone: list[int], made: Value, fresh: list[Dim]
) -> Carried:
    """Entries of neighbouring axes picked by number, which must be scaled alike along these."""
    first, kept = gone[0], [a for a in range(len(x.axes)) if a not in gone]
    before = [x.axes[a] for a in kept if a < first]
    axes = [*before, *fresh, *(x.axes[a] for a in kept if a > first)]
    state.name(*(x.axes[a] for a in gone))
    result = state.make(made, axes)
    where = {i: i if a < first else i + len(fresh) for i, a in enumerate(kept)}

    def close() -> None:
        total = contract(state.system, x.exponent, x.axes, gone)
        result.exponent = lift(state.system, Carried([x.axes[a] for a in kept], total), where, axes)

    state.later(close)
    return result


def apart(dim: Dim, most: int = SMALL) -> bool:
    """Whether every index of an axis can be told from the others; then it is."""
    if size_of(dim) > most:
        return False
    shatter(dim)
    return find(dim).kind != "flat"


def selected(state: Propagation, x: Carried, axis: int, numbers: list[int], made: Value) -> None:
    """Indices of a shattered axis in the given order."""
    chosen = row([Dim(1) for _ in numbers])
    result = state.make(made, [chosen if a == axis else d for a, d in enumerate(x.axes)])
    state.name(x.axes[axis], chosen)

    def close() -> None:
        places = {b.offset: k for k, b in enumerate(blocks(x.axes[axis]))}
        readers: dict[int, list[int]] = {}
        for k, number in enumerate(numbers):
            readers.setdefault(places[number], []).append(k)
        result.exponent = {
            (*choice[:axis], k, *choice[axis + 1 :]): terms
            for choice, terms in x.exponent.items()
            for k in readers.get(choice[axis], ())
        }

    state.later(close)


def listed(node: Node) -> tuple[int, list[int]]:
    """One axis whose entries are taken by a list of numbers, and these; none where it is not so."""
    shape, given = node.args[0].shape, node.args[1]
    if node.name == "index":
        places = [(a, i) for a, i in enumerate(given) if i is not None]
        (axis, index), alone = places[0], len(places) == 1
    else:
        given = [given] if isinstance(given, int) else given
        axis, alone = given[0] % len(shape), len(given) == 1
        if node.name == "flip":
            return axis, [*range(shape[axis])][::-1] if alone else []
        index = node.args[2]
    if not alone or len(index.shape) != 1 or index.integers is None:
        return axis, []
    numbers = index.integers
    if numbers.dtype == torch.bool:
        numbers = numbers.nonzero().flatten()
    return axis, [n % shape[axis] for n in numbers.tolist()]


@rule("flip", "index_select")
def _reordered(state: Propagation, node: Node) -> None:
    """Entries in another order: on a small axis every index for itself."""
    x, made, given = state.of(node.args[0]), made_by(node), node.args[1]
    axis, numbers = listed(node)
    if numbers and apart(x.axes[axis]):
        selected(state, x, axis, numbers, made)
        return
    gone = [a % len(x.axes) for a in ([given] if isinstance(given, int) else given)]
    state.note(f"entries of {node.name} {ALIKE}", node.args[0], dims=[x.axes[a] for a in gone])
    for axis in gone:
        x = gathered(state, x, [axis], made, [state.told(made.shape[axis])])


@rule("topk", "sort")
def _sorted(state: Propagation, node: Node) -> None:
    """The largest values, which stay these where all are scaled alike."""
    value, made = node.args[0], made_by(node)
    x = state.of(value)
    axis = node.arg(2 if node.name == "topk" else 1, "dim", -1) % len(x.axes)
    state.separate(x)
    if state.mode == "sign":
        state.pin(value)
    gathered(state, x, [axis], made, [state.told(made.shape[axis])])


@rule("triu", "tril")
def _triangle(state: Propagation, node: Node) -> None:
    """Entries stay, or are zero; on small axes every one by itself."""
    x, made = state.of(node.args[0]), made_by(node)
    state.name(*x.axes[-2:])
    state.separate(x, len(x.axes) - 2, len(x.axes) - 1)
    if not all(map(apart, x.axes[-2:], (16, 16))):
        what = f"entries that {node.name} sets to zero count like the others: scales may be missed"
        state.note(what, node.args[0], dims=list(x.axes[-2:]))
    state.carried[made.number] = x


@rule("diagonal")
def _diagonal(state: Propagation, node: Node) -> None:
    """The entries (i, i + offset) of two small axes, every index for itself."""
    x, made = state.of(node.args[0]), made_by(node)
    dims = len(x.axes)
    first, second = (node.arg(k, f"dim{k - 1}", k - 2) % dims for k in (2, 3))
    if "dim1" not in node.kwargs and len(node.args) < 3:
        first, second = 0, 1
    if not all(apart(x.axes[a], 16) for a in (first, second)):
        unknown(state, node)
        return
    kept = [a for a in range(dims) if a not in (first, second)]
    state.name(x.axes[first], x.axes[second])
    chosen = row([state.told(1) for _ in range(made.shape[-1])])
    offset = node.arg(1, "offset", 0)
    result = state.make(made, [*(x.axes[a] for a in kept), chosen])
    names = {a: i for i, a in enumerate(kept)}

    def close() -> None:
        places = [{b.offset: k for k, b in enumerate(blocks(x.axes[a]))} for a in (first, second)]
        high, right = max(-offset, 0), max(offset, 0)
        met = {(places[0][high + n], places[1][right + n]): n for n in range(made.shape[-1])}
        result.exponent = {
            (*(choice[a] for a in kept), met[choice[first], choice[second]]): {
                tuple((names[a], k) for a, k in slots): form for slots, form in terms.items()
            }
            for choice, terms in x.exponent.items()
            if (choice[first], choice[second]) in met
        }

    state.later(close)
