"""Homogeneity analysis: one rate for each parameter, so that the output is scaled as a whole."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.weights.families.homogeneity import Homogeneity
from eqtoolbox.weights.search.member import EPSILON_LEFT
from eqtoolbox.weights.tracing.exponents import contract
from eqtoolbox.weights.tracing.propagation import Propagation, everywhere
from eqtoolbox.weights.tracing.rules import propagate
from eqtoolbox.weights.tracing.system import LAST
from eqtoolbox.weights.tracing.trace import Trace, Value

Array = NDArray[np.float64]


def propose_homogeneity(trace: Trace) -> Iterator[Homogeneity]:
    """The rates nearest to 1 under which the output scales; all positive, or nothing.

    The same propagation as for single units, with whole tensors as units: its nullspace holds the
    rates and, as one more unknown, the degree. None where the loss sees parameters beside the
    output, as penalties on weights do: what scales the output tells nothing of such a loss.
    """
    if trace.output is None or not _by_output_alone(trace, trace.output):
        return
    used = {v.number for node in trace.live(trace.output) for v in node.inputs}
    named = {n: v for n, v in trace.parameters.items() if v.number in used}
    if not named:
        return
    rows: list[int] = []

    def fill(state: Propagation) -> None:
        for value in named.values():
            rows.append(state.system.unknown())
            carried = state.carried[value.number]
            carried.exponent = everywhere(carried, {rows[-1]: 1.0})
        for carried in state.vacant:
            carried.exponent = everywhere(carried, {state.system.unknown(rank=LAST): 1.0})

    state = propagate(trace, trace.output, fill)
    output, system = state.of(trace.output), state.system
    total = contract(system, output.exponent, output.axes, range(len(output.axes)))
    degree = total.get((), {}).get((), {})
    forms = [system.reduce({row: 1.0}) for row in rows]
    free = {u: k for k, u in enumerate(system.free())}
    basis, grade = np.zeros((len(rows), len(free))), np.zeros(len(free))
    for k, form in enumerate(forms):
        for unknown, c in form.items():
            basis[k, free[unknown]] = c
    for unknown, c in system.reduce(degree).items():
        grade[free[unknown]] = c
    if not basis.shape[1]:
        return
    matrices = np.array([len(v.shape) > 1 for v in named.values()])
    rates = _nearest_to_one(basis, grade, matrices)
    if rates is None or rates[:-1].min() < 1e-6:
        return
    yield Homogeneity(
        name="all parameters",
        dimension=1,
        rates=tuple(zip(named, rates[:-1].tolist(), strict=True)),
        degree=float(rates[-1]),
        tolerance=EPSILON_LEFT if any(state.normalised) else 0.0,
    )


def _by_output_alone(trace: Trace, output: Value) -> bool:
    """Whether all that the loss has of the parameters is what the output has of them."""
    within = trace.live(output)
    moving = {v.number for v in trace.parameters.values()}
    for node in within:
        if any(v.number in moving for v in node.inputs):
            moving.update(made.number for made in node.outputs if made is not None)
    moving.discard(output.number)
    known = set(map(id, within))
    beyond = (node for node in trace.live(trace.loss) if id(node) not in known)
    return not any(v.number in moving for node in beyond for v in node.inputs)


def _nearest_to_one(basis: Array, degree: Array, matrices: NDArray[np.bool_]) -> Array | None:
    """Rates, then the degree: least squares over the matrices, then 1 for each vector left free."""
    vectors = [basis[[k]] for k in np.flatnonzero(~matrices)]
    best, free = np.zeros(basis.shape[1]), np.eye(basis.shape[1])
    for rows in (basis[matrices], *vectors):
        along = rows @ free
        if not free.shape[1] or not np.abs(along).max(initial=0.0) > 1e-9:
            continue
        best = best + free @ np.linalg.lstsq(along, 1.0 - rows @ best, rcond=1e-9)[0]
        free = _reflected(free, along[0]) if len(rows) == 1 else free @ _null_space(along)
    found: Array = np.append(basis @ best, degree @ best).round(9).astype(np.float64)
    return found if abs(found[-1]) > 1e-6 else None


def _null_space(rows: Array) -> Array:
    """Orthonormal columns that are zero along these rows, to rounding."""
    _, sizes, right = np.linalg.svd(rows)
    found: Array = right[np.count_nonzero(sizes > 1e-9 * sizes[0]) :].T
    return found


def _reflected(free: Array, row: Array) -> Array:
    """Columns that span what of `free` is zero along one row: a reflection takes it to an axis."""
    normal = row / np.linalg.norm(row)
    normal[0] += np.copysign(1.0, normal[0])
    found: Array = free - np.outer(free @ normal, 2.0 / (normal @ normal) * normal)
    return found[:, 1:]
