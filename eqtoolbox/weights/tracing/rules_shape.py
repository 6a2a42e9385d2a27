"""Rules of propagation for what moves, picks, repeats and joins entries."""

import math

import numpy as np
from scipy import sparse

from eqtoolbox.weights.tracing.exponents import UNKNOWNS, Exponent, Form, renumbered, reshaped
from eqtoolbox.weights.tracing.propagation import Propagation, made_by, rule, unknown
from eqtoolbox.weights.tracing.trace import Node, Value


@rule(
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
    "max_pool2d", "avg_pool3d", "avg_pool1d", "max_pool3d_with_indices", "upsample_nearest2d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest1d", "constant_pad_nd",
    "reflection_pad2d", "replication_pad2d", "_upsample_bilinear2d_aa", "adaptive_avg_pool2d",
    "mkldnn_max_pool2d", "max_unpool2d", "im2col", "pixel_shuffle",
)  # fmt: skip
def _spatial(state: Propagation, node: Node) -> Exponent | None:
    if node.name in ("im2col", "pixel_shuffle", "max_unpool2d"):
        return unknown(state, node)
    value, made = node.args[0], made_by(node)
    if node.name == "constant_pad_nd" and node.arg(2, "value", 0) != 0:
        return unknown(state, node)
    exponent = state.of(value)
    changed = [a for a, (m, n) in enumerate(zip(value.shape, made.shape, strict=True)) if m != n]
    moved = changed if node.name == "constant_pad_nd" else range(2, len(value.shape))
    if node.name == "constant_pad_nd" and exponent.joined(*moved) is not None:
        what = "padding along an axis with units of its own: scales of these are missed"
        state.pinned.note(what, state.pinned.follow(node, [value]))
    rest = state.constraints.contract(exponent, *moved)
    if "max" in node.name:
        state.separate(exponent)
        if state.mode == "sign":
            state.constraints.pin(exponent)
    return Exponent(made.shape, rest.terms)


@rule("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "_reshape_alias")
def _view(state: Propagation, node: Node) -> Exponent:
    return reshaped(state.of(node.args[0]), made_by(node).shape)


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
    return renumbered(state.of(value), made_by(node).shape, {a: i for i, a in enumerate(order)})


@rule("expand", "expand_as")
def _expanded(state: Propagation, node: Node) -> Exponent:
    return state.of(node.args[0]).broadcast(made_by(node).shape)


@rule(
    "repeat",
    "flip",
    "index_select",
    "select",
    "slice",
    "index",
    "embedding",
    "roll",
    "split",
    "split_with_sizes",
    "unsafe_split",
    "unbind",
    "chunk",
    "unsafe_split_with_sizes",
)
def _picked(state: Propagation, node: Node) -> Exponent | None:
    """Operations that only pick entries of some axis."""
    value = node.args[0]
    exponent = state.of(value)
    if node.name == "embedding":
        return _embedding(state, node)
    if node.name == "index":
        return unknown(state, node)
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
        return unknown(state, node)
    exponent = state.of(table)
    flat = tokens.integers.reshape(-1).numpy()
    dims = len(tokens.shape)
    result = Exponent(made_by(node).shape)
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
            return unknown(state, node)
    return result


@rule("cat", "stack")
def _concatenated(state: Propagation, node: Node) -> Exponent:
    made = made_by(node)
    axis = node.arg(1, "dim", 0) % len(made.shape)
    parts = [v for v in node.args[0] if math.prod(v.shape)]
    exponents = [state.of(v) for v in parts]
    if node.name == "stack":
        shapes = [(*v.shape[:axis], 1, *v.shape[axis:]) for v in parts]
        exponents = [reshaped(e, shape) for e, shape in zip(exponents, shapes, strict=True)]
    along = tuple(sorted({a for e in exponents for t in e.terms for a in t if axis in t} | {axis}))
    others = [e.without(axis) for e in exponents]
    # what does not depend on the axis must agree, or be written per index of it
    agree = all(_same_terms(others[0], o) for o in others[1:])
    if not agree:
        along = tuple(sorted({a for e in exponents for t in e.terms for a in t} | {axis}))
    blocks = []
    for e in exponents:
        size = math.prod(e.shape[a] for a in along)
        block: Form = sparse.csr_matrix((size, UNKNOWNS))
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
