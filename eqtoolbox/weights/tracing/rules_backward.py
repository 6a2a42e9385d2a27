"""Rules of propagation for gradients that a loss takes inside: activations run backward.

Each multiplies a gradient, entry by entry, by the slope of its map. The slope of a positively
homogeneous map does not see the scale, that of an odd map not the sign.
"""

from eqtoolbox.weights.tracing.dims import Dim
from eqtoolbox.weights.tracing.exponents import Carried, contract, lift, pin
from eqtoolbox.weights.tracing.propagation import Propagation, made_by, rule, unknown
from eqtoolbox.weights.tracing.trace import Node

_STEPS = {"threshold_backward", "leaky_relu_backward", "rrelu_with_noise_backward"}
_EVEN = {"tanh_backward"}  # slopes of odd maps


@rule(
    "threshold_backward", "leaky_relu_backward", "rrelu_with_noise_backward", "tanh_backward",
    "sigmoid_backward", "silu_backward", "gelu_backward", "softplus_backward", "elu_backward",
    "mish_backward", "hardtanh_backward", "hardswish_backward", "hardsigmoid_backward",
    "log_sigmoid_backward", "mse_loss_backward", "smooth_l1_loss_backward",
    "huber_loss_backward", "native_dropout_backward",
)  # fmt: skip
def _gate(state: Propagation, node: Node) -> None:
    if node.name == "threshold_backward" and node.args[2] != 0:
        unknown(state, node)
        return
    axes = [Dim(n) for n in made_by(node).shape]
    (own, where), *gates = [state.aligned(v, axes) for v in node.inputs]
    state.separate(own)
    for gate, _ in gates:
        state.separate(gate)
    result = state.make(made_by(node), axes)
    blind = node.name in (_STEPS if state.mode == "scale" else _EVEN)

    def close() -> None:
        if not blind:
            for gate, _ in gates:
                pin(state.system, gate.exponent)
        result.exponent = lift(state.system, own, where, axes)

    state.later(close)


@rule("slice_backward", "select_backward")
def _placed(state: Propagation, node: Node) -> None:
    """A gradient among zeros, of entries picked along one axis: these are taken for alike.

    What is zero may be scaled like them.
    """
    value, made = node.args[0], made_by(node)
    x, axis = state.of(value), node.args[2] % len(made.shape)
    if value.number in state.zeros:
        return
    place = axis if node.name == "slice_backward" else None
    kept = [a for a in range(len(x.axes)) if a != place]
    rest = [x.axes[a] for a in kept]
    axes = [*rest[:axis], state.told(made.shape[axis]), *rest[axis:]]
    result = state.make(made, axes)
    if place is not None:
        state.name(x.axes[place])
        what = "a gradient put among zeros: its entries were taken for alike, so that scales"
        state.note(f"{what} of single ones are missed", value, dims=[x.axes[place]])

    def close() -> None:
        gone = [] if place is None else [place]
        total = contract(state.system, x.exponent, x.axes, gone)
        where = {i: i + (i >= axis) for i in range(len(rest))}
        result.exponent = lift(state.system, Carried(rest, total), where, axes)

    state.later(close)
