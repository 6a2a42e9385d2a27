"""Propagation: what every operation of a trace does to exponents, and what it demands of them.

Products add; sums equate; positively homogeneous maps pass; smooth maps and softmax pin to zero; a
contraction over i demands x_i + w_i constant and passes the constant on; a normalisation demands
a constant and absorbs it; reshapes carry along. An operation not listed pins all it reads, which
can only make the group found smaller.
"""

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


def made_by(node: Node) -> Value:
    """The operation's first result."""
    made = node.outputs[0]
    assert made is not None
    return made
