"""Rules of propagation for what works entry by entry, and for products and sums."""

import math

from eqtoolbox.weights.tracing.blocks import size_of
from eqtoolbox.weights.tracing.dims import Dim, unify
from eqtoolbox.weights.tracing.exponents import Carried, Exponent, equate, lift, pin, plus, times
from eqtoolbox.weights.tracing.propagation import EPSILON, Propagation, made_by, rule, unknown
from eqtoolbox.weights.tracing.trace import Node, Value

_ODD = {"tanh", "sin", "erf", "atan", "asinh", "sinh"}
_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0, "square": 2.0}


@rule(
    "gelu", "silu", "sigmoid", "softplus", "elu", "selu", "mish", "exp", "log", "log1p", "cos",
    "hardswish", "hardsigmoid", "log_sigmoid", "expm1", "celu", "round", "hardtanh", "tanh", "sin",
    "erf", "atan", "asinh", "sinh", "rsub", "log_sigmoid_forward",
)  # fmt: skip
def pointwise(state: Propagation, node: Node) -> None:
    """The scale must be zero; exchanges pass; the signs of an odd map too."""
    if state.mode == "sign" and node.name in _ODD:
        _same(state, node)
        state.separate(state.of(node.args[0]))
        return
    state.pin(*node.inputs)
    axes = [Dim(n) for n in made_by(node).shape]
    for value in node.inputs:
        state.aligned(value, axes)
    state.make(made_by(node), axes)


@rule("softmax", "_softmax", "_log_softmax", "_safe_softmax", "log_softmax", "logsumexp")
def _normalised(state: Propagation, node: Node) -> None:
    """The scale must be zero; entries may change places, and what it mixes only all alike."""
    value, made = node.args[0], made_by(node)
    state.pin(*node.inputs)
    axes = state.of(value).axes
    given = node.arg(1, "dim", -1)
    gone = {a % len(axes) for a in ([given] if isinstance(given, int) else given)}
    state.mixed.append(([axes[a] for a in gone], axes))
    if made.shape == value.shape:
        state.make(made, axes)
    else:
        state.make(made, _reduced(axes, gone, len(made.shape) == len(axes)))


def _reduced(axes: list[Dim], gone: set[int], keep: bool) -> list[Dim]:
    if keep:
        return [Dim(1) if a in gone else d for a, d in enumerate(axes)]
    return [d for a, d in enumerate(axes) if a not in gone]


@rule(
    "nll_loss_forward", "nll_loss2d_forward", "mse_loss", "smooth_l1_loss", "huber_loss",
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "l1_loss", "_local_scalar_dense",
    "isnan", "isfinite",
)  # fmt: skip
def _ends(state: Propagation, node: Node) -> None:
    """A loss, or a number that is read: no scale passes, and entries are told apart."""
    state.pin(*node.inputs)
    for value in node.inputs:
        if state.moves(value):
            state.name(*state.of(value).axes)


@rule("gt", "lt", "ge", "le", "eq", "ne")
def _compared(state: Propagation, node: Node) -> None:
    """A comparison with zero sees no scale."""
    _same_axes(state, node)
    first, other = node.args[:2]
    if state.mode == "sign" or not isinstance(other, (int, float)) or other != 0:
        state.pin(*node.inputs)
    else:
        state.separate(state.of(first))


def _same_axes(state: Propagation, node: Node) -> None:
    """A result on the axes of what it is made of, without an exponent."""
    axes = [Dim(n) for n in made_by(node).shape]
    for value in node.inputs:
        if state.moves(value):
            state.aligned(value, axes)
    state.make(made_by(node), axes)


@rule("sign", "heaviside")
def _sign(state: Propagation, node: Node) -> None:
    """Sees no positive scale."""
    if any(map(state.moves, node.inputs[1:])):
        unknown(state, node)
        return
    _same_axes(state, node)
    state.separate(state.of(node.args[0]))
    if state.mode == "sign":
        state.pin(node.args[0])


@rule("relu", "leaky_relu", "abs", "threshold", "rrelu_with_noise", "rrelu_with_noise_functional")
def homogeneous(state: Propagation, node: Node) -> None:
    """Positive scales pass; signs stop, or vanish where it is even."""
    if node.name == "threshold" and (node.args[1] != 0 or node.args[2] != 0):
        unknown(state, node)
        return
    value = state.of(node.args[0])
    state.separate(value)
    if state.mode == "sign" and node.name == "abs":
        state.make(made_by(node), value.axes)
        return
    if state.mode == "sign":
        state.pin(node.args[0])
    state.carried[made_by(node).number] = value


@rule("clamp", "clamp_min", "clamp_max")
def _clamp(state: Propagation, node: Node) -> None:
    """At zero it is homogeneous; a tiny lower bound keeps a division from zero."""
    bounds = [b for b in (*node.args[1:], *node.kwargs.values()) if b is not None]
    numbers = all(isinstance(b, (int, float)) for b in bounds)
    tiny = numbers and len(bounds) == 1 and abs(bounds[0]) <= EPSILON
    if numbers and (not any(bounds) or (tiny and node.name != "clamp_max")):
        homogeneous(state, node)
        if any(bounds):
            value = state.of(node.args[0])
            state.later(lambda: state.normalised.append(value.exponent))
    else:
        pointwise(state, node)


@rule("_prelu_kernel", "prelu")
def _prelu(state: Propagation, node: Node) -> None:
    value, slope = node.args[:2]
    state.pin(slope)
    own = state.of(value)
    if node.name == "_prelu_kernel":
        state.aligned(slope, own.axes)
    elif slope.size > 1:
        unify(state.of(slope).axes[0], own.axes[1])
    homogeneous(state, node)


@rule(
    "clone", "detach", "alias", "neg", "_to_copy", "contiguous", "lift_fresh", "positive",
    "dropout", "to", "native_dropout", "nan_to_num",
)  # fmt: skip
def _same(state: Propagation, node: Node) -> None:
    value = state.of(node.args[0])
    state.carried[made_by(node).number] = value
    if node.name == "native_dropout":
        state.separate(value)


@rule("copy")
def _copy(state: Propagation, node: Node) -> None:
    target, source = node.args[:2]
    if state.moves(target):
        unknown(state, node)
        return
    axes = [Dim(n) for n in target.shape]
    own, where = state.aligned(source, axes)
    _lifted(state, made_by(node), axes, [(own, where, 1.0)])


def _lifted(
    state: Propagation,
    made: Value,
    axes: list[Dim],
    parts: list[tuple[Carried, dict[int, int], float]],
) -> Carried:
    """A product of powers of tensors that are broadcast to these axes."""
    result = state.make(made, axes)

    def close() -> None:
        total: Exponent = {}
        for own, where, factor in parts:
            total = plus(total, lift(state.system, own, where, axes), factor)
        result.exponent = total

    state.later(close)
    return result


@rule("sqrt", "rsqrt", "reciprocal", "square", "pow")
def _power(state: Propagation, node: Node) -> None:
    power = _POWERS.get(node.name, node.args[1] if len(node.args) > 1 else None)
    if not isinstance(power, (int, float)) or isinstance(node.args[0], (int, float)):
        pointwise(state, node)
        return
    value = state.of(node.args[0])
    if state.mode == "sign" and power % 2 == 1:
        state.carried[made_by(node).number] = value
        state.separate(value)
        return
    result = state.make(made_by(node), value.axes)
    state.separate(value)
    if state.mode == "sign" and power % 2:
        state.pin(node.args[0])
    elif state.mode == "scale":

        def close() -> None:
            result.exponent = times(value.exponent, float(power))

        state.later(close)


@rule(
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "new_zeros", "bernoulli",
    "new_ones", "new_full", "sym_size", "new_empty", "randn_like",
)  # fmt: skip
def _fresh(state: Propagation, node: Node) -> None:
    """Made anew: only the shape is read."""


@rule("mul", "div")
def _product(state: Propagation, node: Node) -> None:
    made, factor = made_by(node), 1.0 if node.name == "mul" else -1.0
    if node.kwargs.get("rounding_mode"):
        unknown(state, node)
        return
    axes = [Dim(n) for n in made.shape]
    sides = [(v, k) for k, v in enumerate(node.args[:2]) if isinstance(v, Value)]
    parts = [(*state.aligned(v, axes), factor if k else 1.0) for v, k in sides]
    if len(parts) == 2:
        for (value, own), (other, across) in (
            ((sides[0][0], parts[0]), (sides[1][0], parts[1])),
            ((sides[1][0], parts[1]), (sides[0][0], parts[0])),
        ):
            _met(state, own, across)
            if other.number in state.derived and value.number in state.derived:
                state.gated.append(own[0])
            if value.number in state.origin and value.size in (value.shape or (1,)):
                state.gains.add(state.origin[value.number])
    _lifted(state, made, axes, parts)


def _met(
    state: Propagation,
    own: tuple[Carried, dict[int, int], float],
    other: tuple[Carried, dict[int, int], float],
) -> None:
    """What the other factor varies along tells the units of this one apart."""
    loops = {w for i, w in other[1].items() if size_of(other[0].axes[i]) != 1}
    axes = [i for i, w in own[1].items() if w in loops]
    if axes:
        state.separate(own[0], *axes)


@rule("add", "sub", "maximum", "minimum", "where", "fmax", "fmin")
def _sum(state: Propagation, node: Node) -> None:
    made, selects = made_by(node), node.name not in ("add", "sub")
    parts = node.args[1:3] if node.name == "where" else node.args[:2]
    axes = [Dim(n) for n in made.shape]
    if node.name == "where":
        state.aligned(node.args[0], axes)
    tensors = [v for v in parts if isinstance(v, Value) and v.number not in state.zeros]
    if node.name == "where":  # a filled entry may be nothing, or far away: softmax is behind it
        tensors = [v for v in tensors if state.moves(v) or v.size > 1]
    wide = [state.aligned(v, axes) for v in tensors]
    result = state.make(made, axes)
    if selects:
        for own, _ in wide:
            state.separate(own)
        if state.mode == "sign":
            state.pin(*tensors)
    numbers = [abs(v) for v in parts if isinstance(v, (int, float)) and not isinstance(v, bool)]
    rooted = made.number in state.rooted
    largest = state.largest if rooted and node.name == "add" else EPSILON
    real = [v for v in numbers if v > largest and not math.isinf(v)]

    def close() -> None:
        first, *rest = [lift(state.system, own, where, axes) for own, where in wide] or [{}]
        for other in rest:
            equate(state.system, first, other)
        if real or (state.mode == "sign" and any(numbers)):
            pin(state.system, first)
            state.constants.update(v for v in real if rooted and first and v < 1)
        elif any(numbers):
            state.normalised.append(first)
            state.taken.update(v for v in numbers if v > EPSILON)
        result.exponent = first

    state.later(close)


@rule("masked_fill")
def _masked(state: Propagation, node: Node) -> None:
    value, mask, filled = node.args[:3]
    passes = isinstance(filled, (int, float)) and (
        filled == 0 or math.isinf(filled) or filled < -1e30
    )
    own = state.of(value)
    state.carried[made_by(node).number] = own
    if not passes and not isinstance(filled, Value):
        state.pin(value)
    _, where = state.aligned(mask, own.axes)
    axes = [w for i, w in where.items() if mask.shape[i] != 1]
    if axes:
        state.separate(own, *axes)
