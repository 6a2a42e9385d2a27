"""Rules of propagation for contractions, reductions and normalisations."""

from collections.abc import Mapping, Sequence

from eqtoolbox.weights.tracing.blocks import Choice, size_of
from eqtoolbox.weights.tracing.dims import Dim, factor, product, unify
from eqtoolbox.weights.tracing.exponents import (
    WILD,
    ZERO,
    Carried,
    Exponent,
    contract,
    equate,
    lift,
    plus,
    viewed,
)
from eqtoolbox.weights.tracing.propagation import Propagation, made_by, rule
from eqtoolbox.weights.tracing.trace import Node, Value

Part = tuple[Carried, Mapping[int, int]]  # a tensor, and the loop that each axis runs along


@rule("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv", "matmul")
def _matmul(state: Propagation, node: Node) -> None:
    added = node.args[0] if node.name in ("addmm", "baddbmm", "addmv") else None
    left, right = node.args[-2:] if added is None else node.args[1:3]
    made = made_by(node)
    if state.nothing(left) and added is not None:
        axes = [Dim(n) for n in made.shape]
        _contracted(state, made, axes, [], [], added)
        return
    a, b = state.of(left), state.of(right)
    lead = 1 if len(a.axes) == 3 else 0
    loops, ins, outs = a.axes[:lead], dict[int, int](), dict[int, int]()
    if lead:
        unify(a.axes[0], b.axes[0])
        ins[0] = outs[0] = 0
        state.separate(a, 0)
        state.separate(b, 0)
    if len(a.axes) - lead == 2:
        ins[lead] = len(loops)
        loops = [*loops, a.axes[lead]]
    if len(b.axes) - lead == 2:
        outs[lead + 1] = len(loops)
        loops = [*loops, b.axes[lead + 1]]
    unify(a.axes[-1], b.axes[lead])
    ins[len(a.axes) - 1] = outs[lead] = len(loops)
    bias = added if added is not None and added.number not in state.zeros else None
    _contracted(state, made, loops, [a.axes[-1]], [(a, ins), (b, outs)], bias)


def _contracted(
    state: Propagation,
    made: Value,
    kept: list[Dim],
    inner: list[Dim],
    parts: Sequence[Part],
    added: Value | None,
) -> None:
    """The sum over `inner` of a product of tensors, with a bias on what is kept."""
    result = state.make(made, kept)
    bias = state.aligned(added, kept) if added is not None else None

    def close() -> None:
        total = _summed(state, parts, [*kept, *inner], len(kept), state.wanted.get(made.number))
        if bias is not None:
            own = lift(state.system, *bias, kept)
            if not parts:
                total = own
            equate(state.system, own, total)
        result.exponent = total

    state.later(close)


@rule("_trilinear")
def _trilinear(state: Propagation, node: Node) -> None:
    """Three tensors multiplied on common axes, and summed over some of these."""
    values, missing, summed = node.args[:3], node.args[3:6], set(node.args[6])
    parts: list[Part] = []
    loops: dict[int, Dim] = {}
    for value, fresh in zip(values, missing, strict=True):
        own = state.of(value)
        places = [a for a in range(len(value.shape) + len(fresh)) if a not in fresh]
        for axis, place in zip(own.axes, places, strict=True):
            unify(axis, loops.setdefault(place, axis))
        parts.append((own, dict(enumerate(places))))
    for own, where in parts:
        state.separate(own, *(i for i, w in where.items() if w not in summed))
    order = [*sorted(loops.keys() - summed), *sorted(summed)]
    names = {w: k for k, w in enumerate(order)}
    kept = len(order) - len(summed)
    axes = [loops[w] for w in order]
    placed = [(own, {i: names[w] for i, w in where.items()}) for own, where in parts]
    _contracted(state, made_by(node), axes[:kept], axes[kept:], placed, None)


@rule("im2col", "unfold")
def _windows(state: Propagation, node: Node) -> None:
    """Windows along spatial axes, or one axis: what varies along these is lost."""
    x, made = state.of(node.args[0]), made_by(node)
    dims = len(x.axes)
    if node.name == "unfold":
        gone = [node.args[1] % dims]
        axes = [state.told(made.shape[a]) if a in gone else d for a, d in enumerate(x.axes)]
        axes.append(state.told(made.shape[-1]))
    else:
        gone = [dims - 2, dims - 1]
        inside = state.told(made.shape[-2] // size_of(x.axes[-3]))
        axes = [*x.axes[: dims - 3], product([x.axes[-3], inside]), state.told(made.shape[-1])]
        split = [*x.axes[: dims - 2], inside, axes[-1]]
    state.note("windows of what may vary: scales within them are missed", node.args[0],
               dims=[x.axes[a] for a in gone])  # fmt: skip
    state.name(*(x.axes[a] for a in gone))
    result = state.make(made, axes)
    kept = [a for a in range(dims) if a not in gone]

    def close() -> None:
        total = contract(state.system, x.exponent, x.axes, gone)
        rest = Carried([x.axes[a] for a in kept], total)
        if node.name == "unfold":
            result.exponent = lift(state.system, rest, dict(enumerate(kept)), axes)
            return
        wide = Carried(split, lift(state.system, rest, dict(enumerate(kept)), split))
        result.exponent = viewed(state.system, wide, axes)

    state.later(close)


def _summed(
    state: Propagation,
    parts: Sequence[Part],
    loops: list[Dim],
    kept: int,
    wanted: set[Choice] | None = None,
) -> Exponent:
    """What is left of a product after the sum over all but the first loops, in wanted blocks."""
    total: Exponent = ZERO
    for own, where in parts:
        total = plus(total, lift(state.system, own, where, loops))
    if wanted is not None:
        total = {c: terms if c[:kept] in wanted else WILD for c, terms in total.items()}
    gone = range(kept, len(loops))
    return contract(state.system, total, loops, gone) if gone else total


@rule("convolution")
def _convolution(state: Propagation, node: Node) -> None:
    image, weight, bias = node.args[:3]
    transposed, groups, made = node.args[6], node.args[8], made_by(node)
    x, w = state.of(image), state.of(weight)
    group, inside = factor(x.axes[1], image.shape[1] // groups)
    if transposed:
        unify(w.axes[0], x.axes[1])
        outside = w.axes[1]
    else:
        unify(w.axes[1], inside)
        outer, outside = factor(w.axes[0], made.shape[1] // groups)
        unify(group, outer)
    channel = product([group, outside]) if transposed else w.axes[0]
    space = [state.told(n) for n in made.shape[2:]]
    state.name(*x.axes[2:], *w.axes[2:])
    result = state.make(made, [x.axes[0], channel, *space])
    added = state.aligned(bias, [channel]) if isinstance(bias, Value) else None
    if groups > 1:
        state.separate(x, 1)
    split_x = [x.axes[0], group, inside]
    split_w = [group, inside, outside] if transposed else [group, outside, inside]
    loops = [x.axes[0], group, outside, inside]
    where = {0: 1, 1: 3, 2: 2} if transposed else {0: 1, 1: 2, 2: 3}

    def close() -> None:
        xs = _on(state, _without_space(state, x), split_x)
        ws = _on(state, _without_space(state, w), split_w)
        total = _summed(state, [(xs, {0: 0, 1: 1, 2: 3}), (ws, where)], loops, 3)
        joined = _on(state, Carried(loops[:3], total), [x.axes[0], channel])
        if added is not None:
            own, _ = added
            equate(state.system, lift(state.system, own, {0: 1}, joined.axes), joined.exponent)
        result.exponent = lift(state.system, joined, {0: 0, 1: 1}, result.axes)

    state.later(close)


def _without_space(state: Propagation, carried: Carried) -> Carried:
    gone = range(2, len(carried.axes))
    left = contract(state.system, carried.exponent, carried.axes, gone)
    return Carried(carried.axes[:2], left)


def _on(state: Propagation, carried: Carried, axes: list[Dim]) -> Carried:
    """The same entries on other axes."""
    lost: list[str] = []
    result = Carried(axes, viewed(state.system, carried, axes, lost))
    if lost:
        raise ValueError(lost[0])
    return result
