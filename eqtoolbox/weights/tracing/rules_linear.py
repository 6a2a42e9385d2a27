"""Rules of propagation for contractions, reductions and normalisations."""

from eqtoolbox.weights.tracing.exponents import Exponent, renumbered, reshaped
from eqtoolbox.weights.tracing.propagation import Propagation, made_by, rule, unknown
from eqtoolbox.weights.tracing.trace import Node, Value


@rule("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv")
def _matmul(state: Propagation, node: Node) -> Exponent:
    added = node.args[0] if node.name in ("addmm", "baddbmm", "addmv") else None
    left, right = node.args[-2:] if added is None else node.args[1:3]
    if left.number in state.zeros and added is not None:
        return state.of(added).broadcast(made_by(node).shape)
    a, b = state.of(left), state.of(right)
    batch = len(left.shape) == 3
    lead = 1 if batch else 0
    # axes of the product before the sum: (batch) row, inner, column
    rows, inner = len(left.shape) - lead - 1, left.shape[-1]
    columns = len(right.shape) - lead - 1
    shape = (*left.shape[:lead], *left.shape[lead : lead + rows], inner, *right.shape[lead + 1 :])
    at = lead + rows
    wide_a = renumbered(a, shape, {i: i for i in range(len(left.shape))})
    wide_b = renumbered(
        b,
        shape,
        {**{i: i for i in range(lead)}, lead: at, **({lead + 1: at + 1} if columns else {})},
    )
    if batch:
        state.separate(wide_a, 0)
        state.separate(wide_b, 0)
    total = state.constraints.contract(wide_a.plus(_facing(state, wide_b, at)), at)
    made = made_by(node).shape
    result = renumbered(total, made, {i: i if i < at else i - 1 for i in range(len(shape))})
    if added is not None:
        state.constraints.equate(state.of(added).broadcast(made), result)
    return result


def _facing(state: Propagation, weight: Exponent, axis: int) -> Exponent:
    """What meets the other factor along a contracted axis.

    Scales cancel there; signs and labels are the same on both sides, so that one parameter may
    stand on both (tied embeddings).
    """
    return weight if state.mode == "scale" else weight.turned(axis)


@rule("convolution")
def _convolution(state: Propagation, node: Node) -> Exponent:
    image, weight, bias = node.args[:3]
    transposed, groups = node.args[6], node.args[8]
    x, w = state.of(image), state.of(weight)
    spatial = range(2, len(weight.shape))
    x, w = (state.constraints.contract(e, *spatial) for e in (x, w))
    made = made_by(node).shape
    channels_in, channels_out = image.shape[1], made[1]
    per_in, per_out = channels_in // groups, channels_out // groups
    # axes: sample, group, out of the group, in of the group, then the output's space
    shape = (made[0], groups, per_out, per_in, *made[2:])
    flat = (image.shape[0], groups, per_in)
    xs = reshaped(Exponent((image.shape[0], channels_in), dict(x.terms)), flat)
    wide = renumbered(xs, shape, {0: 0, 1: 1, 2: 3})
    if transposed:
        ws = reshaped(Exponent(weight.shape[:2], dict(w.terms)), (groups, per_in, per_out))
        wide_w = renumbered(ws, shape, {0: 1, 1: 3, 2: 2})
    else:
        ws = reshaped(Exponent(weight.shape[:2], dict(w.terms)), (groups, per_out, per_in))
        wide_w = renumbered(ws, shape, {0: 1, 1: 2, 2: 3})
    if groups > 1:
        state.separate(wide, 1)
    total = state.constraints.contract(wide.plus(_facing(state, wide_w, 3)), 3)
    dropped = Exponent((made[0], groups, per_out, *made[2:]))
    moved = renumbered(total, dropped.shape, {i: i if i < 3 else i - 1 for i in range(len(shape))})
    result = reshaped(moved, made)
    if bias is not None:
        b = renumbered(state.of(bias), made, {0: 1})
        state.constraints.equate(b, result)
    return result


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional",
    "cudnn_batch_norm", "native_layer_norm", "native_group_norm", "_fused_rms_norm",
    "_batch_norm_with_update", "_batch_norm_no_update", "batch_norm",
)  # fmt: skip
def _normalisation(state: Propagation, node: Node) -> Exponent:
    value = node.args[0]
    dims = len(value.shape)
    x = state.of(value)
    axes: tuple[int, ...]
    if "batch_norm" in node.name:
        gain, bias, axis_of = node.args[1], node.args[2], {0: 1}
        axes = tuple(a for a in range(dims) if a != 1)
        training = node.name != "_batch_norm_no_update" and bool(node.arg(5, "training", True))
        if not training:
            state.constraints.pin(x)
    elif node.name == "native_group_norm":
        gain, bias, axis_of = node.args[1], node.args[2], {0: 1}
        groups = node.args[6]
        split = (value.shape[0], groups, value.shape[1] // groups, *value.shape[2:])
        x, axes = reshaped(x, split), tuple(range(2, dims + 1))
    else:
        last = len(node.args[1])
        gain = node.args[2] if len(node.args) > 2 else None
        bias = node.args[3] if node.name == "native_layer_norm" else None
        axis_of = {i: dims - last + i for i in range(last)}
        axes = tuple(range(dims - last, dims))
    state.separate(x)
    state.normalised += x.terms.values()
    if state.mode == "label":
        kept = state.of(value)
        for part in (gain, bias):
            if isinstance(part, Value):
                state.constraints.equate(renumbered(state.of(part), value.shape, axis_of), kept)
        return kept
    centred = node.name != "_fused_rms_norm"
    result = Exponent(value.shape)
    if state.mode == "sign":  # a sign comes out again: of each entry, or of all that share a mean
        if centred:
            state.constraints.contract(x, *axes)
        result = state.of(value)
    else:
        state.constraints.contract(x, *axes)
    if isinstance(gain, Value):
        state.gains.add(gain.number)
        result = result.plus(renumbered(state.of(gain), value.shape, axis_of))
    if isinstance(bias, Value):
        state.constraints.equate(renumbered(state.of(bias), value.shape, axis_of), result)
    state.separate(result)
    return result


@rule(
    "sum",
    "mean",
    "amax",
    "amin",
    "linalg_vector_norm",
    "var",
    "std",
    "max",
    "min",
    "prod",
    "var_mean",
)
def _reduction(state: Propagation, node: Node) -> Exponent | None:
    value = node.args[0]
    dims = len(value.shape)
    exponent = state.of(value)
    position = 2 if node.name == "linalg_vector_norm" else 1
    given = node.arg(position, "dim")
    if node.name == "prod" or isinstance(given, Value):
        return unknown(state, node)
    axes = [given] if isinstance(given, int) else list(given or range(dims))
    axes = [a % dims for a in axes]
    if node.name not in ("sum", "mean"):
        state.separate(exponent)
        if state.mode == "sign" and node.name != "var_mean":
            state.constraints.pin(exponent)
    if state.mode == "label":  # the order of what is reduced does not matter
        inside = [t for t in exponent.terms if set(t) <= set(axes)]
        kept_terms = {t: f for t, f in exponent.terms.items() if t not in inside}
        exponent = Exponent(exponent.shape, kept_terms)
    rest = state.constraints.contract(exponent, *axes)
    made = made_by(node).shape
    kept = [a for a in range(dims) if a not in axes]
    names = {a: a for a in kept} if len(made) == dims else {a: i for i, a in enumerate(kept)}
    result = renumbered(rest, made, names)
    if node.name == "var_mean":
        mean = node.outputs[1]
        if mean is not None:
            state.exponents[mean.number] = result
        return None if state.mode == "sign" else result.scaled(2.0)  # even
    return result.scaled(2.0) if node.name == "var" else result
