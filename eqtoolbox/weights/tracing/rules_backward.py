"""Rules of propagation for gradients that a loss takes inside: activations run backward.

Each multiplies a gradient, entry by entry, by the slope of its map. The slope of a positively
homogeneous map does not see the scale, that of an odd map not the sign.
"""

from eqtoolbox.weights.tracing.exponents import Exponent
from eqtoolbox.weights.tracing.propagation import Propagation, made_by, rule, unknown
from eqtoolbox.weights.tracing.trace import Node, Value

_STEPS = {"threshold_backward", "leaky_relu_backward", "rrelu_with_noise_backward"}
_EVEN = {"tanh_backward"}  # slopes of odd maps


@rule(
    "threshold_backward", "leaky_relu_backward", "rrelu_with_noise_backward", "tanh_backward",
    "sigmoid_backward", "silu_backward", "gelu_backward", "softplus_backward", "elu_backward",
    "mish_backward", "hardtanh_backward", "hardswish_backward", "hardsigmoid_backward",
    "log_sigmoid_backward", "mse_loss_backward", "smooth_l1_loss_backward",
    "huber_loss_backward", "native_dropout_backward",
)  # fmt: skip
def _gate(state: Propagation, node: Node) -> Exponent | None:
    if node.name == "threshold_backward" and node.args[2] != 0:
        return unknown(state, node)
    shape = made_by(node).shape
    gradient, *gates = [v for v in node.inputs if isinstance(v, Value)]
    own = state.of(gradient).broadcast(shape)
    state.separate(own)
    for value in gates:
        gate = state.of(value).broadcast(shape)
        state.separate(gate)
        if state.mode == "label":
            state.constraints.equate(gate, own)
        elif not _blind(state, node.name):
            state.constraints.pin(gate)
    return own


def _blind(state: Propagation, name: str) -> bool:
    """Whether the slope stays as it is where what it is taken at is moved."""
    return name in (_STEPS if state.mode == "scale" else _EVEN)


@rule("slice_backward", "select_backward")
def _placed(state: Propagation, node: Node) -> Exponent | None:
    """A gradient among zeros: of entries that were picked along one axis."""
    value, made = node.args[0], made_by(node)
    axis = node.args[2] % len(made.shape)
    exponent = state.of(value)
    if any(value.number not in state.zeros and axis in axes for axes in exponent.terms):
        return unknown(state, node)
    if node.name == "slice_backward":
        return Exponent(made.shape, dict(exponent.terms))
    terms = {tuple(a + (a >= axis) for a in axes): f for axes, f in exponent.terms.items()}
    return Exponent(made.shape, terms)
