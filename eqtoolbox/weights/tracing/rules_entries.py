"""Rules of propagation for what works entry by entry, and for products and sums."""

import math
from typing import Any

from eqtoolbox.weights.tracing.exponents import Exponent
from eqtoolbox.weights.tracing.propagation import (
    EPSILON,
    POINTWISE,
    Propagation,
    made_by,
    rule,
    unknown,
)
from eqtoolbox.weights.tracing.trace import Node, Value


@rule(
    "gelu", "silu", "sigmoid", "softplus", "elu", "selu", "mish", "exp", "log", "log1p",
    "cos", "hardswish", "hardsigmoid", "softmax", "_softmax", "log_sigmoid",
    "_log_softmax", "_safe_softmax", "logsumexp", "nll_loss_forward", "nll_loss2d_forward",
    "mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "glu", "topk", "sort",
    "binary_cross_entropy_with_logits", "expm1", "log_sigmoid_forward", "argmax", "gather",
    "celu", "cumsum", "l1_loss", "gt", "lt", "ge", "le", "eq", "ne", "scatter", "round",
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
        return unknown(state, node)
    exponent = state.of(node.args[0])
    state.separate(exponent)
    if state.mode == "sign":
        if node.name == "abs":
            return None  # even
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
    "clone", "detach", "alias", "neg", "_to_copy", "contiguous", "lift_fresh", "positive",
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
        return unknown(state, node)
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
        odd, even = power % 2 == 1, power % 2 == 0
        return None if even else exponent if odd else _pins(state, node)
    if state.mode == "label":
        return exponent
    return exponent.scaled(float(power))


@rule("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "new_zeros", "bernoulli")
def _fresh(state: Propagation, node: Node) -> None:
    """Made anew: only the shape is read."""


@rule("mul", "div")
def _product(state: Propagation, node: Node) -> Exponent:
    shape = made_by(node).shape
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
            if own.terms and value.number in state.origin and value.size in value.shape:
                state.gains.add(state.origin[value.number])
    if state.mode == "label" and len(wide) == 2:
        marked = [e for (v, _), e in zip(sides, wide, strict=True) if v.number not in state.uniform]
        if len(marked) < 2:
            return marked[0] if marked else wide[0]
        larger, smaller = (0, 1) if len(sides[0][1].shape) >= len(sides[1][1].shape) else (1, 0)
        full = [a for a, n in enumerate(sides[smaller][0].shape) if n != 1]
        if full:
            lead = len(shape) - len(sides[smaller][0].shape)
            shared = {a + lead for a in full}
            terms = {t: f for t, f in wide[larger].terms.items() if set(t) & shared}
            part = Exponent(shape, terms)
            state.constraints.equate(part, wide[smaller])
        return wide[larger]
    if len(wide) == 2:
        return wide[0].plus(wide[1], factor)
    first_is_number = not isinstance(node.args[0], Value)
    return wide[0].scaled(factor) if first_is_number else wide[0]


def _listed(axes: Any) -> tuple[int, ...]:
    """Axes to separate; an axis that no term has when there are none."""
    return tuple(axes) or (-1,)


@rule("add", "sub", "rsub", "maximum", "minimum", "lerp", "addcmul", "where", "fmod")
def _sum(state: Propagation, node: Node) -> Exponent | None:
    if node.name in ("lerp", "addcmul", "fmod"):
        return unknown(state, node)
    shape = made_by(node).shape
    parts = node.args[1:3] if node.name == "where" else node.args[:2]
    ignored = state.zeros | (state.uniform if state.mode == "label" else set())
    given = [v for v in parts if isinstance(v, Value)]
    tensors = [v for v in given if v.number not in ignored] or given[:1]
    numbers = [v for v in parts if isinstance(v, (int, float)) and not isinstance(v, bool)]
    wide = [state.of(v).broadcast(shape) for v in tensors]
    for other in wide[1:]:
        state.constraints.equate(wide[0], other)
    rooted = made_by(node).number in state.rooted
    largest = state.largest if rooted and node.name == "add" else EPSILON
    real = [abs(v) for v in numbers if abs(v) > largest and not math.isinf(v)]
    if state.mode != "label" and real:
        state.constraints.pin(wide[0])
        state.constants.update(v for v in real if rooted and wide[0].terms and v < 1)
    elif any(v != 0 for v in numbers):
        state.normalised += wide[0].terms.values()
        state.taken.update(abs(v) for v in numbers if abs(v) > EPSILON)
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
