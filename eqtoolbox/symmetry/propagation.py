"""Propagation: what every operation of a trace does to exponents, and what it demands of them.

Products add; sums equate; positively homogeneous maps pass; smooth maps and softmax pin to zero; a
contraction over i demands x_i + w_i constant and passes the constant on; a normalisation demands
a constant and absorbs it; reshapes carry along. An operation not listed pins all it reads, which
can only make the group found smaller.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from eqtoolbox.symmetry.exponents import (
    Constraints,
    Exponent,
    Form,
    Indices,
    indices_of,
    renumbered,
    reshaped,
)
from eqtoolbox.symmetry.trace import Node, Trace, Value

Mode = Literal["scale", "sign", "label"]
EPSILON = 1e-3  # a constant up to this, added before a root, is a normalisation's epsilon


POINTWISE = {
    "gelu", "silu", "sigmoid", "softplus", "elu", "selu", "mish", "exp", "log", "log1p", "cos",
    "hardtanh", "hardswish", "hardsigmoid", "log_sigmoid", "tanh", "sin", "erf", "pow", "clamp",
    "clamp_min", "clamp_max", "celu", "expm1",
}  # fmt: skip


@dataclass
class Propagation:
    """Exponents of all values of a trace, with the constraints that make them consistent.

    In mode "sign" an exponent says which entries change sign: odd maps pass, ReLU pins. In mode
    "label" it only says which unit an entry belongs to: every pointwise map passes it, an
    elementwise product wants equal ones, a normalisation keeps them.
    """

    mode: Mode = "scale"
    exponents: dict[int, Exponent] = field(default_factory=dict)
    constraints: Constraints = field(default_factory=Constraints)
    separations: list[tuple[Form, Indices]] = field(default_factory=list)
    # rows (units) that an operation tells apart when their keys differ
    gated: list[Form] = field(default_factory=list)  # passed a product with another activation
    gains: set[int] = field(default_factory=set)  # values that act as a normalisation's gain
    normalised: list[Form] = field(default_factory=list)  # absorbed by a normalisation
    derived: set[int] = field(default_factory=set)  # values that depend on data and parameters
    unknown: set[str] = field(default_factory=set)  # operations without a rule

    def of(self, value: Any) -> Exponent:
        """Exponent of a value; zero for data and constants."""
        found = self.exponents.get(value.number)
        return found if found is not None else Exponent(value.shape)

    def separate(self, exponent: Exponent, *axes: int) -> None:
        """Units at different indices of `axes` are told apart (all axes if none are given)."""
        for term_axes, form in exponent.terms.items():
            kept = tuple(a for a in term_axes if not axes or a in axes)
            if kept:
                self.separations.append((form, indices_of(exponent.shape, term_axes, kept)))


Rule = Callable[[Propagation, Node], Exponent | None]
RULES: dict[str, Rule] = {}


def propagate(
    trace: Trace,
    start: dict[int, Exponent],
    target: Value,
    constraints: Constraints,
    mode: Mode = "scale",
) -> Propagation:
    """Exponents up to `target` from those of the parameters in `start`."""
    state = Propagation(mode=mode, exponents=dict(start), constraints=constraints)
    reach = set(start)  # values that depend on parameters
    for node in trace.live(target):
        inputs = node.inputs
        if any(v.number in reach for v in inputs):
            reach.update(o.number for o in node.outputs if o is not None)
            if not any(state.of(v).terms for v in inputs):
                state.derived.update(o.number for o in node.outputs if o is not None)
                continue
            rule = RULES.get(node.name, _unknown)
            try:
                made = rule(state, node)
            except (IndexError, KeyError, TypeError, ValueError, AttributeError):
                made = _unknown(state, node)
            output = node.outputs[0] if node.outputs else None
            if made is not None and output is not None:
                state.exponents[output.number] = made
            state.derived.update(o.number for o in node.outputs if o is not None)
    return state


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _unknown(state: Propagation, node: Node) -> None:
    state.unknown.add(node.name)
    for value in node.inputs:
        state.constraints.pin(state.of(value))


@rule(
    "gelu", "silu", "sigmoid", "softplus", "elu", "selu", "mish", "exp", "log", "log1p",
    "cos", "hardswish", "hardsigmoid", "softmax", "_softmax", "log_sigmoid",
    "_log_softmax", "_safe_softmax", "logsumexp", "nll_loss_forward", "nll_loss2d_forward",
    "mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "glu", "topk", "sort",
    "binary_cross_entropy_with_logits", "expm1", "log_sigmoid_forward", "argmax", "gather",
    "celu", "cumsum", "l1_loss", "gt", "lt", "ge", "le", "eq", "ne", "scatter", "rsub", "round",
    "_local_scalar_dense", "pow_scalar", "isnan", "sign",
)  # fmt: skip
def _pins(state: Propagation, node: Node) -> Exponent | None:
    if state.mode == "label" and node.name in POINTWISE:
        return state.of(node.args[0])
    for value in node.inputs:
        state.constraints.pin(state.of(value))
    return None


@rule("relu", "leaky_relu", "abs", "threshold", "rrelu_with_noise", "rrelu_with_noise_functional")
def _homogeneous(state: Propagation, node: Node) -> Exponent | None:
    if node.name == "threshold" and (node.args[1] != 0 or node.args[2] != 0):
        return _unknown(state, node)
    exponent = state.of(node.args[0])
    state.separate(exponent)
    if state.mode == "sign":
        state.constraints.pin(exponent)
    return exponent


@rule("tanh", "sin", "erf", "atan", "asinh", "sinh")
def _odd(state: Propagation, node: Node) -> Exponent | None:
    if state.mode != "sign":
        return _pins(state, node)
    state.separate(state.of(node.args[0]))
    return state.of(node.args[0])


@rule("clamp", "clamp_min", "clamp_max", "hardtanh")
def _clamp(state: Propagation, node: Node) -> Exponent | None:
    bounds = (*node.args[1:], *node.kwargs.values())
    return _homogeneous(state, node) if not any(bounds) else _pins(state, node)


@rule("_prelu_kernel", "prelu")
def _prelu(state: Propagation, node: Node) -> Exponent | None:
    state.constraints.pin(state.of(node.args[1]))
    return _homogeneous(state, node)


@rule(
    "clone", "detach", "alias", "neg", "_to_copy", "contiguous", "lift_fresh", "copy_to", "positive",
    "dropout", "to", "native_dropout",
)  # fmt: skip
def _same(state: Propagation, node: Node) -> Exponent:
    exponent = state.of(node.args[0])
    if node.name == "native_dropout":
        state.separate(exponent)
    return exponent


@rule("copy")
def _copy(state: Propagation, node: Node) -> Exponent | None:
    target, source = node.args[0], node.args[1]
    if state.of(target).terms:
        return _unknown(state, node)
    return state.of(source).broadcast(target.shape)


@rule("sqrt", "rsqrt", "reciprocal", "square", "pow")
def _power(state: Propagation, node: Node) -> Exponent | None:
    powers = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0, "square": 2.0}
    power = powers.get(node.name, node.args[1] if len(node.args) > 1 else None)
    if not isinstance(power, (int, float)):
        return _pins(state, node)
    exponent = state.of(node.args[0])
    if not exponent.terms:
        return None
    state.separate(exponent)
    if state.mode == "sign":
        return _pins(state, node)
    if state.mode == "label":
        return exponent
    return exponent.scaled(float(power))


@rule("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "new_zeros", "bernoulli")
def _fresh(state: Propagation, node: Node) -> None:
    """Made anew: only the shape is read."""


@rule("mul", "div")
def _product(state: Propagation, node: Node) -> Exponent:
    shape = _made(node).shape
    factor = 1.0 if node.name == "mul" else -1.0
    sides = [(v, state.of(v)) for v in node.args[:2] if isinstance(v, Value)]
    wide = [e.broadcast(shape) for _, e in sides]
    if len(sides) == 2:
        for (value, own), (other, _), mine in (
            (sides[0], sides[1], wide[0]),
            (sides[1], sides[0], wide[1]),
        ):
            lead = len(shape) - len(other.shape)
            state.separate(mine, *_listed(a + lead for a, n in enumerate(other.shape) if n != 1))
            if other.number in state.derived and value.number in state.derived:
                state.gated += mine.terms.values()
            if own.terms and value.number not in state.derived and len(value.shape) == 1:
                state.gains.add(value.number)
    if state.mode == "label" and len(wide) == 2:
        larger, smaller = (0, 1) if len(sides[0][1].shape) >= len(sides[1][1].shape) else (1, 0)
        full = [a for a, n in enumerate(sides[smaller][0].shape) if n != 1]
        if full:
            lead = len(shape) - len(sides[smaller][0].shape)
            own = {a + lead for a in full}
            part = Exponent(
                shape, {t: f for t, f in wide[larger].terms.items() if set(t) & own}
            )
            state.constraints.equate(part, wide[smaller])
        return wide[larger]
    if len(wide) == 2:
        return wide[0].plus(wide[1], factor)
    first_is_number = not isinstance(node.args[0], Value)
    return wide[0].scaled(factor) if first_is_number else wide[0]


def _listed(axes: Any) -> tuple[int, ...]:
    """Axes to separate; an axis that no term has when there are none."""
    return tuple(axes) or (-1,)


@rule("add", "sub", "maximum", "minimum", "lerp", "addcmul", "where", "fmod")
def _sum(state: Propagation, node: Node) -> Exponent | None:
    if node.name in ("lerp", "addcmul", "fmod"):
        return _unknown(state, node)
    shape = _made(node).shape
    parts = node.args[1:3] if node.name == "where" else node.args[:2]
    tensors = [v for v in parts if isinstance(v, Value)]
    numbers = [v for v in parts if isinstance(v, (int, float)) and not isinstance(v, bool)]
    wide = [state.of(v).broadcast(shape) for v in tensors]
    for other in wide[1:]:
        state.constraints.equate(wide[0], other)
    if state.mode != "label" and any(abs(v) > EPSILON and not math.isinf(v) for v in numbers):
        state.constraints.pin(wide[0])
    elif any(v != 0 for v in numbers):
        state.normalised += wide[0].terms.values()
    if node.name in ("maximum", "minimum", "where"):
        state.separate(wide[0])
        if state.mode == "sign":
            state.constraints.pin(wide[0])
    return wide[0]


@rule("masked_fill")
def _masked(state: Propagation, node: Node) -> Exponent | None:
    value = node.args[2]
    passes = isinstance(value, (int, float)) and (value == 0 or math.isinf(value) or value < -1e30)
    exponent = state.of(node.args[0])
    if not passes and not isinstance(value, Value):
        state.constraints.pin(exponent)
    state.separate(exponent, *_listed(_varying(node.args[1], exponent)))
    return exponent


def _varying(other: Value, exponent: Exponent) -> list[int]:
    lead = len(exponent.shape) - len(other.shape)
    return [a + lead for a, n in enumerate(other.shape) if n != 1]


@rule("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv")
def _matmul(state: Propagation, node: Node) -> Exponent:
    added = node.args[0] if node.name in ("addmm", "baddbmm", "addmv") else None
    left, right = node.args[-2:] if added is None else node.args[1:3]
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
        b, shape, {**{i: i for i in range(lead)}, lead: at, **({lead + 1: at + 1} if columns else {})}
    )
    if batch:
        state.separate(wide_a, 0)
        state.separate(wide_b, 0)
    total = state.constraints.contract(wide_a.plus(wide_b), at)
    made = _made(node).shape
    result = renumbered(total, made, {i: i if i < at else i - 1 for i in range(len(shape))})
    if added is not None:
        state.constraints.equate(state.of(added).broadcast(made), result)
    return result


@rule("convolution")
def _convolution(state: Propagation, node: Node) -> Exponent:
    image, weight, bias = node.args[:3]
    transposed, groups = node.args[6], node.args[8]
    x, w = state.of(image), state.of(weight)
    spatial = range(2, len(weight.shape))
    x, w = (state.constraints.contract(e, *spatial) for e in (x, w))
    made = _made(node).shape
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
    total = state.constraints.contract(wide.plus(wide_w), 3)
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
    if state.mode == "sign":
        state.constraints.pin(x)
    if state.mode == "label":
        kept = state.of(value)
        for part in (gain, bias):
            if isinstance(part, Value):
                state.constraints.equate(renumbered(state.of(part), value.shape, axis_of), kept)
        return kept
    state.constraints.contract(x, *axes)
    result = Exponent(value.shape)
    if isinstance(gain, Value):
        state.gains.add(gain.number)
        result = renumbered(state.of(gain), value.shape, axis_of)
    if isinstance(bias, Value):
        state.constraints.equate(renumbered(state.of(bias), value.shape, axis_of), result)
    state.separate(result)
    return result


@rule("sum", "mean", "amax", "amin", "linalg_vector_norm", "var", "std", "max", "min", "prod")
def _reduction(state: Propagation, node: Node) -> Exponent | None:
    value = node.args[0]
    dims = len(value.shape)
    exponent = state.of(value)
    position = 2 if node.name == "linalg_vector_norm" else 1
    given = node.arg(position, "dim")
    if node.name == "prod" or isinstance(given, Value):
        return _unknown(state, node)
    axes = [given] if isinstance(given, int) else list(given or range(dims))
    axes = [a % dims for a in axes]
    if node.name not in ("sum", "mean"):
        state.separate(exponent)
        if state.mode == "sign":
            state.constraints.pin(exponent)
    rest = state.constraints.contract(exponent, *axes)
    made = _made(node).shape
    kept = [a for a in range(dims) if a not in axes]
    names = {a: a for a in kept} if len(made) == dims else {a: i for i, a in enumerate(kept)}
    result = renumbered(rest, made, names)
    return result.scaled(2.0) if node.name == "var" else result


@rule(
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
    "max_pool2d", "avg_pool3d", "avg_pool1d", "max_pool3d_with_indices", "upsample_nearest2d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest1d", "constant_pad_nd",
    "reflection_pad2d", "replication_pad2d", "_upsample_bilinear2d_aa", "adaptive_avg_pool2d",
    "mkldnn_max_pool2d", "max_unpool2d", "im2col", "pixel_shuffle",
)  # fmt: skip
def _spatial(state: Propagation, node: Node) -> Exponent | None:
    if node.name in ("im2col", "pixel_shuffle", "max_unpool2d"):
        return _unknown(state, node)
    value, made = node.args[0], _made(node)
    if node.name == "constant_pad_nd" and node.arg(2, "value", 0) != 0:
        return _unknown(state, node)
    exponent = state.of(value)
    changed = [a for a, (m, n) in enumerate(zip(value.shape, made.shape, strict=True)) if m != n]
    moved = changed if node.name == "constant_pad_nd" else range(2, len(value.shape))
    rest = state.constraints.contract(exponent, *moved)
    if "max" in node.name:
        state.separate(exponent)
        if state.mode == "sign":
            state.constraints.pin(exponent)
    return Exponent(made.shape, rest.terms)


@rule("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "_reshape_alias")
def _view(state: Propagation, node: Node) -> Exponent:
    return reshaped(state.of(node.args[0]), _made(node).shape)


@rule("t", "transpose", "permute")
def _permuted(state: Propagation, node: Node) -> Exponent:
    value = node.args[0]
    dims = len(value.shape)
    order = list(range(dims))
    if node.name == "permute":
        order = [a % dims for a in node.args[1]]
    elif node.name == "transpose":
        i, j = node.args[1] % dims, node.args[2] % dims
        order[i], order[j] = order[j], order[i]
    else:
        order.reverse()
    return renumbered(state.of(value), _made(node).shape, {a: i for i, a in enumerate(order)})


@rule("expand", "expand_as")
def _expanded(state: Propagation, node: Node) -> Exponent:
    return state.of(node.args[0]).broadcast(_made(node).shape)


@rule("repeat", "flip", "index_select", "select", "slice", "index", "embedding", "roll",
      "split", "split_with_sizes", "unsafe_split", "unbind", "chunk", "unsafe_split_with_sizes")
def _picked(state: Propagation, node: Node) -> Exponent | None:
    """Operations that only pick entries of some axis."""
    value = node.args[0]
    exponent = state.of(value)
    if node.name == "embedding":
        return _embedding(state, node)
    if node.name == "index":
        return _unknown(state, node)
    for number, output in enumerate(node.outputs):
        if output is not None:
            picked = _pick(node, exponent, output, number)
            state.exponents[output.number] = picked
    first = node.outputs[0]
    return state.exponents[first.number] if first is not None else None


def _pick(node: Node, exponent: Exponent, output: Value, number: int) -> Exponent:
    """The exponent of one output, from what the operation does to each axis."""
    shape, dims = exponent.shape, len(exponent.shape)
    source = {a: np.arange(n) for a, n in enumerate(shape)}  # index read, per axis
    gone: set[int] = set()
    lead = len(output.shape) - dims
    if node.name == "repeat":
        shift = lead
        source = {a: np.arange(output.shape[a + shift]) % n for a, n in enumerate(shape)}
    elif node.name in ("flip", "roll"):
        return _moved(node, exponent, output)
    else:
        axis = node.arg(2 if "split" in node.name or node.name == "chunk" else 1, "dim", 0) % dims
        shift = 0
        if node.name == "select":
            source[axis] = np.array([node.args[2] % shape[axis]])
            gone = {axis}
        elif node.name == "unbind":
            source[axis] = np.array([number])
            gone = {axis}
        elif node.name == "slice":
            start, end = node.arg(2, "start"), node.arg(3, "end")
            source[axis] = np.arange(shape[axis])[slice(start, end, node.arg(4, "step", 1))]
        elif node.name == "index_select":
            source[axis] = node.args[2].integers.numpy()
        else:
            before = sum(o.shape[axis] for o in node.outputs[:number] if o is not None)
            source[axis] = np.arange(before, before + output.shape[axis])
    kept = [a for a in range(dims) if a not in gone]
    names = {a: i + shift for i, a in enumerate(kept)}
    result = Exponent(output.shape)
    for axes, form in exponent.terms.items():
        grid = np.arange(form.shape[0]).reshape([shape[a] for a in axes] or [1])
        if axes:
            grid = grid[np.ix_(*(source[a] for a in axes))]
        result.add(tuple(names[a] for a in axes if a in names), form[grid.reshape(-1)])
    return result


def _moved(node: Node, exponent: Exponent, output: Value) -> Exponent:
    given = node.args[2] if node.name == "roll" else node.args[1]
    axes_moved = {a % len(exponent.shape) for a in given}
    if any(axes_moved & set(axes) for axes in exponent.terms):
        raise ValueError("moves entries along a scaled axis")
    return Exponent(output.shape, dict(exponent.terms))


def _embedding(state: Propagation, node: Node) -> Exponent | None:
    """Rows of a table by token; the rows that this batch does not read stay as they are."""
    table, tokens = node.args[:2]
    if tokens.integers is None:
        return _unknown(state, node)
    exponent = state.of(table)
    flat = tokens.integers.reshape(-1).numpy()
    dims = len(tokens.shape)
    result = Exponent(_made(node).shape)
    for axes, form in exponent.terms.items():
        if axes == (0,):
            unread = np.setdiff1d(np.arange(form.shape[0]), flat)
            state.constraints.vanish(form[unread] - form[np.full(len(unread), flat[0])])
            result.add(tuple(range(dims)), form[flat])
        elif axes == (1,):
            result.add((dims,), form)
        elif axes == ():
            result.add((), form)
        else:
            return _unknown(state, node)
    return result


@rule("cat", "stack")
def _concatenated(state: Propagation, node: Node) -> Exponent:
    from scipy import sparse

    made = _made(node)
    axis = node.arg(1, "dim", 0) % len(made.shape)
    parts = [v for v in node.args[0] if math.prod(v.shape)]
    exponents = [state.of(v) for v in parts]
    if node.name == "stack":
        one = lambda v: (*v.shape[:axis], 1, *v.shape[axis:])
        exponents = [reshaped(e, one(v)) for e, v in zip(exponents, parts, strict=True)]
    along = tuple(sorted({a for e in exponents for t in e.terms for a in t if axis in t} | {axis}))
    others = [e.without(axis) for e in exponents]
    # what does not depend on the axis must agree, or be written per index of it
    agree = all(_same_terms(others[0], o) for o in others[1:])
    if not agree:
        along = tuple(sorted({a for e in exponents for t in e.terms for a in t} | {axis}))
    blocks = []
    for e in exponents:
        size = math.prod(e.shape[a] for a in along)
        block: Form = sparse.csr_matrix((size, 2**31 - 2))
        for axes in e.terms:
            if not agree or axis in axes:
                block = block + e.on(axes, along)
        blocks.append(block)
    result = Exponent(made.shape, dict(others[0].terms) if agree else {})
    stacked = sparse.vstack(blocks, format="csr")
    numbers = [np.arange(b.shape[0]) for b in blocks]
    offsets = np.cumsum([0, *(len(n) for n in numbers[:-1])])
    grids = [
        (n + o).reshape([e.shape[a] for a in along])
        for n, o, e in zip(numbers, offsets, exponents, strict=True)
    ]
    order = np.concatenate(grids, axis=along.index(axis)).reshape(-1)
    result.add(along, stacked[order])
    return result


def _same_terms(a: Exponent, b: Exponent) -> bool:
    if a.terms.keys() != b.terms.keys():
        return False
    differences = (a.terms[k] - b.terms[k] for k in a.terms)
    return all(abs(d).sum() == 0 for d in differences)


def _made(node: Node) -> Value:
    made = node.outputs[0]
    assert made is not None
    return made
