"""Rules of propagation for what moves, repeats and joins entries."""

import math
from collections.abc import Sequence

from eqtoolbox.weights.tracing.blocks import Choice, Slot, blocks, runs, size_of
from eqtoolbox.weights.tracing.dims import Dim, cut, factor, find, product, row, unify
from eqtoolbox.weights.tracing.exponents import (
    Carried,
    Exponent,
    Terms,
    contract,
    lift,
    renamed,
    viewed,
)
from eqtoolbox.weights.tracing.propagation import Propagation, made_by, rule, unknown
from eqtoolbox.weights.tracing.trace import Node, Value

VIEWS = ("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "_reshape_alias",
         "unflatten")  # fmt: skip
PERMUTED = ("t", "transpose", "permute", "swapaxes", "numpy_T")


@rule(*VIEWS)
def _view(state: Propagation, node: Node) -> None:
    reshape(state, state.of(node.args[0]), made_by(node))


def reshape(state: Propagation, x: Carried, made: Value) -> Carried:
    """The same entries in another shape: runs of axes merge and split."""
    axes: list[Dim] = [Dim(1) for _ in made.shape]
    for left, right in runs([size_of(d) for d in x.axes], made.shape):
        if not left or not right:
            continue
        whole = product([x.axes[i] for i in left]) if len(left) > 1 else x.axes[left[0]]
        for axis in reversed(right[1:]):
            whole, axes[axis] = factor(whole, made.shape[axis])
        axes[right[0]] = whole
    result = state.make(made, axes)
    _look(state, x, result, made)
    return result


def _look(state: Propagation, x: Carried, result: Carried, made: Value) -> None:
    def close() -> None:
        lost: list[str] = []
        result.exponent = viewed(state.system, x, result.axes, lost)
        for what in lost:
            words = f"{what}: its entries were taken for alike, so that some scales are missed"
            state.pinned.note(words, state.pinned.behind([made]))

    state.later(close)


def order_of(node: Node, dims: int) -> list[int]:
    """For every axis of the result the one that it was."""
    order = list(range(dims))
    if node.name == "permute":
        order = [a % dims for a in node.args[1]]
    elif node.name in ("transpose", "swapaxes"):
        i, j = node.args[1] % dims, node.args[2] % dims
        order[i], order[j] = order[j], order[i]
    else:
        order.reverse()
    return order


@rule(*PERMUTED)
def _permuted(state: Propagation, node: Node) -> None:
    x = state.of(node.args[0])
    order = order_of(node, len(x.axes))
    result = state.make(made_by(node), [x.axes[a] for a in order])
    places = {a: i for i, a in enumerate(order)}

    def close() -> None:
        moved: dict[Choice, Terms] = {}
        for choice, terms in x.exponent.items():
            names: dict[Slot, Slot] = {s: (places[s[0]], s[1]) for slots in terms for s in slots}
            moved[tuple(choice[a] for a in order)] = renamed(state.system, x, choice, terms, names)
        result.exponent = moved

    state.later(close)


@rule("expand", "expand_as")
def _expanded(state: Propagation, node: Node) -> None:
    x, made = state.of(node.args[0]), made_by(node)
    axes = [Dim(n) for n in made.shape]
    lead = len(axes) - len(x.axes)
    for i, axis in enumerate(x.axes):
        if size_of(axis) == size_of(axes[i + lead]):
            axes[i + lead] = axis
    result = state.make(made, axes)
    where = {i: i + lead for i in range(len(x.axes))}

    def close() -> None:
        result.exponent = lift(state.system, x, where, axes)

    state.later(close)


@rule("repeat")
def _repeated(state: Propagation, node: Node) -> None:
    x, made = state.of(node.args[0]), made_by(node)
    lead = len(made.shape) - len(x.axes)
    inner, axes, where = list[Dim](), list[Dim](), dict[int, int]()
    for i, n in enumerate(made.shape):
        own = x.axes[i - lead] if i >= lead else Dim(1)
        if i >= lead:
            where[i - lead] = len(inner) + 1
        pair = [Dim(n // size_of(own)), own]
        inner += pair
        axes.append(product(pair))
    result = state.make(made, axes)

    def close() -> None:
        wide = Carried(inner, lift(state.system, x, where, inner))
        result.exponent = viewed(state.system, wide, axes)

    state.later(close)


@rule("cat", "stack")
def _concatenated(state: Propagation, node: Node) -> None:
    made = made_by(node)
    axis = node.arg(1, "dim", 0) % len(made.shape)
    values = [v for v in node.args[0] if math.prod(v.shape)]
    parts = [state.of(v) for v in values]
    state.vacant += [p for v, p in zip(values, parts, strict=True) if state.nothing(v)]
    wide = parts
    if node.name == "stack":
        wide = [Carried([*p.axes[:axis], Dim(1), *p.axes[axis:]]) for p in parts]
    for other in wide[1:]:
        for a, (mine, own) in enumerate(zip(wide[0].axes, other.axes, strict=True)):
            if a != axis:
                unify(mine, own)
    joined = row([p.axes[axis] for p in wide])
    result = state.make(made, [joined if a == axis else d for a, d in enumerate(wide[0].axes)])

    def close() -> None:
        known = {b.place: k for k, b in enumerate(blocks(joined))}
        total: dict[Choice, Terms] = {}
        at = 0
        for own, part in zip(parts, wide, strict=True):
            if part is not own:
                where = {i: i + (i >= axis) for i in range(len(own.axes))}
                part.exponent = lift(state.system, own, where, part.axes)
            table = shifted(part.axes[axis], at, known)
            for choice, terms in part.exponent.items():
                total[(*choice[:axis], table[choice[axis]], *choice[axis + 1 :])] = terms
            at += size_of(part.axes[axis])
        result.exponent = total

    state.later(close)


def shifted(dim: Dim, by: int, known: dict[tuple[int, tuple[tuple[int, int], ...]], int],
             modulo: int = 0) -> dict[int, int]:  # fmt: skip
    """Where the blocks of an axis are in a longer one, further on."""
    found = {}
    for k, block in enumerate(blocks(dim)):
        offset, strides = block.place
        there = (offset + by) % modulo if modulo else offset + by
        found[k] = known[there, strides]
    return found


@rule("roll")
def _rolled(state: Propagation, node: Node) -> None:
    """Two cuts put together the other way round, axis by axis."""
    x = state.of(node.args[0])
    shifts, given = node.args[1], node.args[2] if len(node.args) > 2 else []
    if not given:
        unknown(state, node)
        return
    axes, moves = list(x.axes), list[tuple[int, Dim, Dim, int]]()
    for shift, a in zip(shifts, given, strict=True):
        old, size = axes[a % len(axes)], size_of(axes[a % len(axes)])
        if at := -shift % size:
            new = row([cut(old, at, size), cut(old, 0, at)])
            moves.append((a % len(axes), old, new, size - at))
            axes[a % len(axes)] = new
    result = state.make(made_by(node), axes)

    def close() -> None:
        exponent: Exponent = x.exponent
        for a, old, new, by in moves:
            if "flat" in (find(old).kind, find(new).kind):
                continue
            known = {b.place: k for k, b in enumerate(blocks(new))}
            table = shifted(old, by, known, size_of(old))
            exponent = {(*c[:a], table[c[a]], *c[a + 1 :]): t for c, t in exponent.items()}
        result.exponent = exponent

    state.later(close)


@rule(
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
    "max_pool2d", "avg_pool3d", "avg_pool1d", "max_pool3d_with_indices", "upsample_nearest2d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest1d", "constant_pad_nd",
    "reflection_pad2d", "replication_pad2d", "_upsample_bilinear2d_aa", "adaptive_avg_pool2d",
    "mkldnn_max_pool2d", "_adaptive_avg_pool3d", "upsample_linear1d", "reflection_pad1d",
)  # fmt: skip
def _spatial(state: Propagation, node: Node) -> None:
    x, made, value = state.of(node.args[0]), made_by(node), node.args[0]
    first = 1 if "1d" in node.name and len(x.axes) == 2 else 2
    moved = list(range(first, len(x.axes)))
    if node.name == "constant_pad_nd":
        moved = [a for a, n in enumerate(made.shape) if n != value.shape[a]]
        if node.arg(2, "value", 0) != 0:
            unknown(state, node)
            return
        what = "padding along an axis with units of its own: scales of these are missed"
        state.note(what, value, dims=[x.axes[a] for a in moved])
    kept = [a for a in range(len(x.axes)) if a not in moved]
    axes = [state.told(made.shape[a]) if a in moved else d for a, d in enumerate(x.axes)]
    state.name(*(x.axes[a] for a in moved))
    result = state.make(made, axes)
    if "max" in node.name:
        state.separate(x)
        if state.mode == "sign":
            state.pin(value)

    def close() -> None:
        varying = (
            f for t in x.exponent.values() for s, f in t.items() if {a for a, _ in s} & {*moved}
        )
        if "pool" in node.name and any(map(state.system.reduce, varying)):
            what = "pooling along an axis with units of its own: scales of these are missed"
            state.pinned.note(what, state.pinned.behind([value]))
        total = contract(state.system, x.exponent, x.axes, moved)
        rest = Carried([x.axes[a] for a in kept], total)
        result.exponent = lift(state.system, rest, dict(enumerate(kept)), axes)

    state.later(close)


@rule("pixel_shuffle")
def _pixel_shuffle(state: Propagation, node: Node) -> None:
    x, made, factor_ = state.of(node.args[0]), made_by(node), node.args[1]
    batch, channels, high, wide = x.axes
    channels, across = factor(channels, factor_)
    channels, down = factor(channels, factor_)
    split: Sequence[Dim] = [batch, channels, down, across, high, wide]
    turned = [batch, channels, high, down, wide, across]
    result = state.make(made, [batch, channels, product([high, down]), product([wide, across])])
    state.name(high, wide, down, across)

    def close() -> None:
        inner = Carried(list(split), viewed(state.system, x, split))
        where = {0: 0, 1: 1, 2: 3, 3: 5, 4: 2, 5: 4}
        moved = Carried(turned, lift(state.system, inner, where, turned))
        result.exponent = viewed(state.system, moved, result.axes)

    state.later(close)


@rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(state: Propagation, node: Node) -> None:
    """Channels as groups by channels of a group, exchanged."""
    x, made, groups = state.of(node.args[0]), made_by(node), node.args[1]
    slow, fast = factor(x.axes[1], made.shape[1] // groups)
    first, rest = x.axes[0], x.axes[2:]
    result = state.make(made, [first, product([fast, slow]), *rest])

    def close() -> None:
        split = [first, slow, fast, *rest]
        turned = [first, fast, slow, *rest]
        inner = Carried(split, viewed(state.system, x, split))
        where = {a: {1: 2, 2: 1}.get(a, a) for a in range(len(split))}
        moved = Carried(turned, lift(state.system, inner, where, turned))
        result.exponent = viewed(state.system, moved, result.axes)

    state.later(close)
