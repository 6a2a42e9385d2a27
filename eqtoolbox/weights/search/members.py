"""Scaling analysis: all diagonal symmetries of a trace, as members with their units and legs.

The nullspace of the constraints on exponents is the complete diagonal group that the operations
with a rule show. Its local basis vectors are units; units with the same legs make one member,
and operations that tell units apart split a member's units into blocks (matrices act on those).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from eqtoolbox.weights.search.member import Entry, Member
from eqtoolbox.weights.tracing import rules_backward, rules_entries, rules_linear, rules_shape
from eqtoolbox.weights.tracing.exponents import Constraints, Exponent, Form
from eqtoolbox.weights.tracing.nullspace import nullspace
from eqtoolbox.weights.tracing.propagation import LARGEST, Mode, Propagation, propagate
from eqtoolbox.weights.tracing.trace import Trace
from eqtoolbox.weights.tracing.units import (
    independent,
    independent_signs,
    whole_factors,
)

RULE_FILES = (
    rules_backward,
    rules_entries,
    rules_linear,
    rules_shape,
)  # imported for what they register
Bits = NDArray[np.bool_]


def members(
    trace: Trace, mode: Mode = "scale", largest: float = LARGEST
) -> tuple[list[Member], Propagation]:
    """Members of the diagonal group that leaves a trace's loss unchanged; how they were found.

    Args:
        trace: of the loss.
        mode: see `Propagation`.
        largest: constant before a root or a division that may be an epsilon.
    """
    constraints = Constraints()
    start: dict[int, Exponent] = {}
    offsets: dict[tuple[str, int], int] = {}
    ranks = []
    for name, value in trace.parameters.items():
        exponent = Exponent(value.shape)
        for axis, length in enumerate(value.shape):
            offsets[name, axis] = constraints.count
            form = constraints.unknowns(length)
            ranks.append(np.full(length, min(len(value.shape) - 1, 1) + (axis > 0)))
            exponent.add((axis,), form)
            if length == 1 and len(value.shape) > 1:
                constraints.vanish(form)
        start[value.number] = exponent
    used = {v.number for node in trace.live(trace.loss) for v in node.inputs}
    for value in trace.parameters.values():
        if value.number not in used:
            constraints.pin(start[value.number])
    state = propagate(trace, start, trace.loss, constraints, mode, largest)
    constraints.pin(state.of(trace.loss))
    system = stacked(constraints.rows, constraints.count)
    rank = np.full(constraints.count, -1)
    rank[: sum(map(len, ranks))] = np.concatenate(ranks) if ranks else ()
    basis = nullspace(system, rank)
    if not basis.shape[1]:
        return [], state
    return list(_members(trace, state, basis, offsets)), state


def stacked(rows: list[Form], count: int) -> sparse.csr_matrix:
    """All constraints as one matrix with as many columns as there are unknowns."""
    if not rows:
        return sparse.csr_matrix((0, count))
    lengths = np.concatenate([np.diff(r.indptr) for r in rows])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    data = np.concatenate([r.data for r in rows])
    indices = np.concatenate([r.indices for r in rows])
    matrix = sparse.csr_matrix((data, indices, starts), shape=(len(lengths), count))
    matrix.sum_duplicates()
    return matrix


def _members(
    trace: Trace, state: Propagation, basis: sparse.csr_matrix, offsets: dict[tuple[str, int], int]
) -> Iterator[Member]:
    measured, sizes = _measured(trace, basis, offsets)
    if state.mode == "sign":
        factor = sparse.diags(whole_factors(measured))
        kept = independent_signs(measured @ factor, sizes)
        basis = (basis @ factor).tocsr()[:, kept]
    else:
        basis = basis[:, independent(measured, sizes)]
    count = basis.shape[1]
    rng = np.random.default_rng(0)
    signature = np.zeros(count, dtype=np.uint64)
    effects: dict[tuple[str, int], sparse.csc_matrix] = {}
    flip = np.zeros(count)  # sign that makes the first leg positive
    for name, value in trace.parameters.items():
        axes = {
            axis: basis[offsets[name, axis] : offsets[name, axis] + length].tocsc()
            for axis, length in enumerate(value.shape)
        }
        for axis, effect in _without_constants(axes).items():
            if effect.nnz == 0:
                continue
            effects[name, axis] = effect
            low, high, full = _extremes(effect)
            flip = np.where(flip == 0, _leading(effect), flip)
            for kind in (low * flip, high * flip, full.astype(float)):
                for level in np.unique(kind[kind != 0]):
                    signature[kind == level] += rng.integers(1, 2**62, dtype=np.uint64)
    flip[flip == 0] = 1.0
    blocks = _separated(state, basis, rng)
    flags = {
        "gated": _touched(state.gated, basis),
        "normalised": _touched(state.normalised, basis),
        "gain": _gains(trace, state, effects, count),
    }
    for label in dict.fromkeys(signature.tolist()):
        if label == 0:
            continue  # moves no parameter
        chosen = np.flatnonzero(signature == label)
        entries = tuple(_entries(effects, chosen, flip))
        if not entries:
            continue
        groups = [np.flatnonzero(blocks[chosen] == b) for b in dict.fromkeys(blocks[chosen])]
        shapes = {e.name: trace.parameters[e.name].shape for e in entries}
        marks = {kind: bool(bits[chosen].any()) for kind, bits in flags.items()}
        yield Member(entries, len(chosen), tuple(groups), shapes=shapes, **marks)


def _measured(
    trace: Trace, basis: sparse.csr_matrix, offsets: dict[tuple[str, int], int]
) -> tuple[sparse.csr_matrix, NDArray[np.float64]]:
    """How units move the entries that decide it, one row each, and how many rows a unit has.

    A constant moved between axes acts not at all, so exponents of a parameter are compared along
    every axis through its first entry, which decides them.
    """
    measured, sizes = [], np.zeros(basis.shape[1])
    for name, value in trace.parameters.items():
        first = [basis[offsets[name, axis]] for axis in range(len(value.shape))]
        for axis, length in enumerate(value.shape):
            along = basis[offsets[name, axis] : offsets[name, axis] + length]
            others = sum(
                (f for a, f in enumerate(first) if a != axis), sparse.csr_matrix(first[0].shape)
            )
            if others.nnz:
                along = (along + sparse.csr_matrix(np.ones((length, 1))) @ others).tocsr()
            along.data[np.abs(along.data) < 1e-9] = 0
            along.eliminate_zeros()
            sizes += np.bincount(along.indices, minlength=basis.shape[1])
            measured.append(along[np.flatnonzero(np.diff(along.indptr))])
    return sparse.vstack(measured, format="csr"), sizes


def _without_constants(axes: dict[int, sparse.csc_matrix]) -> dict[int, sparse.csc_matrix]:
    """Per unit, the value that most indices of a further axis share, moved to the first axis."""
    if len(axes) < 2:
        return axes
    moved = dict(axes)
    for axis in reversed(list(axes)):
        effect = moved[axis]
        length = effect.shape[0]
        wide = np.flatnonzero(np.diff(effect.indptr) * 2 > length)
        other = 0 if axis else 1
        if axis == 0:
            # a constant on the first axis moves on only where the second has something to cancel
            wide = wide[np.diff(moved[1].indptr)[wide] > 0]
        if not len(wide) or (axis == 0 and moved[1].shape[0] == 1):
            continue
        constants = np.zeros(effect.shape[1])
        for k in wide:
            values = effect.data[effect.indptr[k] : effect.indptr[k + 1]]
            levels, times = np.unique(values.round(9), return_counts=True)
            if times.max() * 2 > length:
                constants[k] = levels[times.argmax()]
        target = moved[other]
        moved[axis] = (effect - _constant_columns(constants, length)).tocsc()
        moved[other] = (target + _constant_columns(constants, target.shape[0])).tocsc()
        for matrix in (moved[axis], moved[other]):
            matrix.data[np.abs(matrix.data) < 1e-9] = 0
            matrix.eliminate_zeros()
    return moved


def _constant_columns(constants: NDArray[np.float64], length: int) -> sparse.csc_matrix:
    """Every column constant, most of them zero."""
    some = np.flatnonzero(constants)
    starts = np.concatenate([[0], np.cumsum(np.where(constants != 0, length, 0))])
    cells = (np.repeat(constants[some], length), np.tile(np.arange(length), len(some)), starts)
    return sparse.csc_matrix(cells, shape=(length, len(constants)))


def _extremes(effect: sparse.csc_matrix) -> tuple[NDArray[np.float64], NDArray[np.float64], Bits]:
    """Smallest and largest rate of every unit (0: none), and whether every index moves."""
    counts = np.diff(effect.indptr)
    some = np.flatnonzero(counts)
    low, high = np.zeros(effect.shape[1]), np.zeros(effect.shape[1])
    low[some] = np.minimum.reduceat(effect.data, effect.indptr[some])
    high[some] = np.maximum.reduceat(effect.data, effect.indptr[some])
    return low, high, counts == effect.shape[0]


def _leading(effect: sparse.csc_matrix) -> NDArray[np.float64]:
    """Sign of the rate at every unit's first index."""
    sign = np.zeros(effect.shape[1])
    some = np.flatnonzero(np.diff(effect.indptr))
    sign[some] = np.sign(effect.sorted_indices().data[effect.indptr[some]])
    return sign


def _entries(
    effects: dict[tuple[str, int], sparse.csc_matrix], chosen: NDArray[np.int64], flip: Form
) -> Iterator[Entry]:
    for (name, axis), effect in effects.items():
        part = effect[:, chosen].tocoo()
        if part.nnz:
            rates = np.round(part.data * flip[chosen][part.col], 9)
            rows, units = part.row.astype(np.int64), part.col.astype(np.int64)
            for rate in np.unique(rates)[::-1]:
                own = rates == rate
                yield Entry(name, axis, rows[own], units[own], rates[own])


def _narrow(form: Form, basis: sparse.csr_matrix) -> sparse.coo_matrix:
    """A form in the unknowns as one in the units."""
    shape = (form.shape[0], basis.shape[0])
    product = (
        sparse.csr_matrix((form.data, form.indices, form.indptr), shape=shape) @ basis
    ).tocoo()
    keep = np.abs(product.data) > 1e-9
    cells = (product.row[keep], product.col[keep])
    return sparse.coo_matrix((product.data[keep], cells), shape=product.shape)


def _separated(
    state: Propagation, basis: sparse.csr_matrix, rng: np.random.Generator
) -> NDArray[np.uint64]:
    """A number per unit; units with the same one are told apart by no operation."""
    total = np.zeros(basis.shape[1], dtype=np.uint64)
    for form, keys in state.separations:
        found = _narrow(form, basis)
        if found.nnz == 0:
            continue
        pairs = np.unique(np.stack([keys[found.row], found.col]), axis=1)
        random = rng.integers(1, 2**62, size=int(keys.max()) + 1, dtype=np.uint64)
        np.add.at(total, pairs[1], random[pairs[0]])
    return total


def _touched(forms: list[Form], basis: sparse.csr_matrix) -> Bits:
    touched = np.zeros(basis.shape[1], dtype=bool)
    for form in forms:
        touched[_narrow(form, basis).col] = True
    return touched


def _gains(
    trace: Trace,
    state: Propagation,
    effects: dict[tuple[str, int], sparse.csc_matrix],
    count: int,
) -> Bits:
    """Units that scale a normalisation's gain."""
    touched = np.zeros(count, dtype=bool)
    for name, value in trace.parameters.items():
        if value.number in state.gains and (name, 0) in effects:
            touched |= np.diff(effects[name, 0].indptr) > 0
    return touched
