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

from eqtoolbox.weights.tracing.exponents import Constraints, Exponent, Form, Indices, indices_of
from eqtoolbox.weights.tracing.pinned import Pinned, reason
from eqtoolbox.weights.tracing.trace import Node, Trace, Value

Mode = Literal["scale", "sign", "label"]
EPSILON = 1e-3  # a constant up to this counts as a normalisation's epsilon wherever it is added
LARGEST = 0.1  # up to this where a root or a division follows; verification judges what is left

POINTWISE = {
    "gelu", "silu", "sigmoid", "softplus", "elu", "selu", "mish", "exp", "log", "log1p", "cos",
    "hardtanh", "hardswish", "hardsigmoid", "log_sigmoid", "tanh", "sin", "erf", "pow", "clamp",
    "clamp_min", "clamp_max", "celu", "expm1",
}  # fmt: skip
UNIFORM = {"zeros", "zeros_like", "ones", "ones_like", "full", "full_like", "new_ones", "fill"}
SPREADS = {"expand", "view", "unsqueeze", "clone", "_to_copy", "detach"}
RESHAPES = {"view", "unsqueeze", "squeeze", "reshape", "expand", "_to_copy", "t", "_unsafe_view"}


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
    zeros: set[int] = field(default_factory=set)  # values that are zero whatever scales them
    uniform: set[int] = field(default_factory=set)  # values that are the same number everywhere
    derived: set[int] = field(default_factory=set)  # values that depend on data and parameters
    origin: dict[int, int] = field(default_factory=dict)  # parameter that a value reshapes
    pinned: Pinned = field(default_factory=Pinned)  # what symmetries may be lost at
    rooted: set[int] = field(default_factory=set)  # values before a root, or divided by
    largest: float = LARGEST  # constant that may be an epsilon there
    taken: set[float] = field(default_factory=set)  # above EPSILON, and taken for one
    constants: set[float] = field(default_factory=set)  # too large for one

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
    largest: float = LARGEST,
) -> Propagation:
    """Exponents up to `target` from those of the parameters in `start`."""
    state = Propagation(mode=mode, exponents=dict(start), constraints=constraints)
    state.origin = {number: number for number in start}
    state.pinned.sources = {
        v.number: {name: None} for name, v in trace.parameters.items() if v.number in start
    }
    state.rooted, state.largest = trace.rooted(), largest
    reach = set(start)  # values that depend on parameters
    for node in trace.live(target):
        inputs = node.inputs
        if node.name in UNIFORM or (node.name in SPREADS and inputs[0].number in state.uniform):
            state.uniform.update(o.number for o in node.outputs if o is not None)
        if _is_zero(state, node):
            state.zeros.update(o.number for o in node.outputs if o is not None)
            continue
        if any(v.number in reach for v in inputs):
            outputs = [o.number for o in node.outputs if o is not None]
            reach.update(outputs)
            if any(v.number not in reach or v.number in state.derived for v in inputs):
                state.derived.update(outputs)
            elif node.name in RESHAPES and inputs[0].number in state.origin:
                state.origin.update(dict.fromkeys(outputs, state.origin[inputs[0].number]))
            moving = [v for v in inputs if state.of(v).terms]
            if not moving:
                continue
            why = reason(node, moving, labels=mode == "label")
            state.pinned.note(why, state.pinned.follow(node, moving))
            rule = RULES.get(node.name, unknown)
            try:
                made = rule(state, node)
            except (IndexError, KeyError, TypeError, ValueError, AttributeError):
                made = unknown(state, node)
            output = node.outputs[0] if node.outputs else None
            if made is not None and output is not None:
                state.exponents[output.number] = made
    return state


def _is_zero(state: Propagation, node: Node) -> bool:
    """Whether the operation makes zeros, or only moves or multiplies them."""
    if node.name in ("zeros", "zeros_like", "new_zeros"):
        return True
    if node.name in ("mul", "mm", "bmm"):
        return any(v.number in state.zeros for v in node.inputs)
    if node.name in (
        "view",
        "unbind",
        "select",
        "t",
        "transpose",
        "expand",
        "_unsafe_view",
        "squeeze",
    ):
        return node.args[0].number in state.zeros
    return False


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def unknown(state: Propagation, node: Node) -> Exponent | None:
    """No rule: everything that the operation reads is pinned."""
    what = (
        f"no rule for {node.name}: what it reads was taken as fixed, so that symmetries through it"
    )
    state.pinned.note(f"{what} are missed", state.pinned.follow(node, node.inputs))
    for value in node.inputs:
        state.constraints.pin(state.of(value))
    return None


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


def made_by(node: Node) -> Value:
    """The operation's first result."""
    made = node.outputs[0]
    assert made is not None
    return made
