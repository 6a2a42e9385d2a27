"""Rules of propagation for normalisations and reductions."""

from collections.abc import Mapping
from typing import Any

from eqtoolbox.weights.tracing.dims import Dim, factor, unify
from eqtoolbox.weights.tracing.exponents import (
    ZERO,
    Carried,
    contract,
    equate,
    lift,
    pin,
    plus,
    times,
    viewed,
)
from eqtoolbox.weights.tracing.propagation import Propagation, made_by, rule, unknown
from eqtoolbox.weights.tracing.trace import Node, Value


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional",
    "cudnn_batch_norm", "native_layer_norm", "native_group_norm", "_fused_rms_norm",
    "_batch_norm_with_update", "_batch_norm_no_update", "batch_norm",
)  # fmt: skip
def _normalisation(state: Propagation, node: Node) -> None:
    value = node.args[0]
    x, dims = state.of(value), len(value.shape)
    gain, bias = node.args[1:3] if len(node.args) > 2 else (None, None)
    where, split, fixed = {0: 1}, x.axes, False
    gone = [a for a in range(dims) if a != 1]
    if node.name == "native_group_norm":
        group, inside = factor(x.axes[1], value.shape[1] // node.args[6])
        split, gone = [x.axes[0], group, inside, *x.axes[2:]], list(range(2, dims + 1))
    elif "batch_norm" not in node.name:
        last = len(node.args[1])
        gain = node.arg(2, "weight")
        bias = node.arg(3, "bias") if node.name == "native_layer_norm" else None
        where = {i: dims - last + i for i in range(last)}
        gone = list(range(dims - last, dims))
    else:
        fixed = node.name == "_batch_norm_no_update" or not node.arg(5, "training", True)
        if fixed:
            _running(state, node, value, x)
    state.mixed.append(([split[a] for a in gone], split))
    parts = [_affine(state, p, where, x) for p in (gain, bias)]
    if isinstance(gain, Value):
        state.gains.add(state.origin.get(gain.number, gain.number))
    result = state.make(made_by(node), x.axes)
    state.separate(x)
    state.separate(result)
    centred = node.name != "_fused_rms_norm"

    def close() -> None:
        state.normalised.append(x.exponent)
        if fixed:
            pin(state.system, x.exponent)
        elif state.mode == "scale" or centred:
            held = x.exponent if split is x.axes else viewed(state.system, x, split)
            contract(state.system, held, split, gone)
        # a sign comes out again: of each entry, or of all that share a mean
        total = x.exponent if state.mode == "sign" else ZERO
        own = [lift(state.system, p, where, x.axes) if p else ZERO for p in parts]
        result.exponent = plus(own[0], total)
        if parts[1]:
            equate(state.system, own[1], result.exponent)

    state.later(close)


def _running(state: Propagation, node: Node, value: Value, x: Carried) -> None:
    """Running statistics go along with channels that are exchanged, if they are known as such."""
    statistics = [v for v in node.args[3:5] if state.moves(v)]
    if len(statistics) == 2:
        for own in map(state.of, statistics):
            unify(own.axes[0], x.axes[1])
        return
    lost = "permutations" if state.exchanges else "scales"
    what = f"normalisation by running statistics, which would have to move along: {lost}"
    state.note(f"{what} of channels through it are missed", value, dims=[x.axes[1]])


def _affine(state: Propagation, part: Any, where: Mapping[int, int], x: Carried) -> Carried | None:
    if not isinstance(part, Value):
        return None
    own = state.of(part)
    for i, axis in where.items():
        unify(own.axes[i], x.axes[axis])
    return own


@rule("_weight_norm_interface", "_weight_norm")
def _weight_norm(state: Propagation, node: Node) -> None:
    """A direction by rows, and their lengths."""
    v, g = state.of(node.args[0]), state.of(node.args[1])
    axis = (node.args[2] if len(node.args) > 2 else 0) % len(v.axes)
    unify(v.axes[axis], g.axes[axis])
    result = state.make(made_by(node), v.axes)
    state.separate(v)

    def close() -> None:
        others = [a for a in range(len(v.axes)) if a != axis]
        if state.mode == "scale":
            contract(state.system, v.exponent, v.axes, others)
        own = lift(state.system, g, {a: a for a in range(len(g.axes))}, result.axes)
        result.exponent = plus(own, v.exponent) if state.mode == "sign" else own

    state.later(close)


def dropped(node: Node) -> list[int]:
    """Axes that a reduction takes away."""
    dims = len(node.args[0].shape)
    given = node.arg(2 if node.name in ("linalg_vector_norm", "norm") else 1, "dim")
    gone = [given] if isinstance(given, int) else list(given or range(dims))
    return [a % dims for a in gone]


@rule("sum", "mean", "amax", "amin", "linalg_vector_norm", "var", "std", "max", "min", "prod",
      "var_mean", "cumsum", "norm", "any", "all")  # fmt: skip
def _reduction(state: Propagation, node: Node) -> None:
    value = node.args[0]
    x, dims, made = state.of(value), len(value.shape), made_by(node)
    if node.name in ("prod", "any", "all") or isinstance(node.arg(1), Value):
        unknown(state, node)
        return
    gone = dropped(node)
    if node.name not in ("sum", "mean"):
        state.separate(x)
    if node.name == "cumsum":
        state.name(*(x.axes[a] for a in gone))
        axes, kept = x.axes, {a: a for a in range(dims) if a not in gone}
    elif len(made.shape) == dims:
        axes = [Dim(1) if a in gone else d for a, d in enumerate(x.axes)]
        kept = {a: a for a in range(dims) if a not in gone}
    else:
        axes = [d for a, d in enumerate(x.axes) if a not in gone]
        kept = {a: i for i, a in enumerate(a for a in range(dims) if a not in gone)}
    both = node.name == "var_mean"
    results = [state.make(o, axes) for o in node.outputs[: 1 + both] if o is not None]
    even = {"var", "var_mean", "std", "linalg_vector_norm", "norm"}

    def close() -> None:
        total = contract(state.system, x.exponent, x.axes, gone)
        rest = Carried([d for a, d in enumerate(x.axes) if a not in gone], total)
        whole = lift(state.system, rest, dict(enumerate(kept.values())), axes)
        for k, result in enumerate(results):
            square = k == 0 and node.name in ("var", "var_mean")
            result.exponent = times(whole, 2.0) if square else whole
            if state.mode == "sign" and k == 0 and node.name in even:
                result.exponent = ZERO
        if state.mode == "sign" and node.name in ("amax", "amin", "max", "min"):
            pin(state.system, x.exponent)

    state.later(close)
