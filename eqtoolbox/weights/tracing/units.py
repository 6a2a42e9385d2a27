"""Independent units: over the real numbers for scales and labels, over the field of two for signs.

Of dependent units the ones that move most are left out.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from eqtoolbox.weights.tracing.nullspace import nullspace


def independent(measured: sparse.csr_matrix, sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Columns of a basis; `measured` is (entries, units), `sizes` (units,)."""
    rank = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")
    dependent = nullspace(measured, rank).tocsc()
    # the free unknowns of the reduced form: each vector has one, of lowest rank in it
    spans = zip(dependent.indptr[:-1], dependent.indptr[1:], strict=True)
    removed = {min(dependent.indices[a:b], key=lambda k: rank[k]) for a, b in spans}
    return np.setdiff1d(np.arange(measured.shape[1]), np.array(sorted(removed), dtype=np.int64))


def independent_signs(measured: sparse.csr_matrix, sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Units whose signs are no product of others'; an even exponent changes no sign.

    Example:
        >>> both = sparse.csr_matrix([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]])
        >>> independent_signs(both, np.array([1.0, 1.0, 2.0])).tolist()
        [0, 1]
    """
    odd = measured.copy()
    odd.data = np.abs(odd.data.round()) % 2
    odd.eliminate_zeros()
    labels = np.random.default_rng(0).integers(1, 2**52, size=odd.shape[1])
    _, distinct = np.unique(odd @ labels, return_index=True)  # equal rows say the same
    columns = odd[np.sort(distinct)].tocsc()
    pivots: dict[int, set[int]] = {}
    kept = []
    for unit in np.argsort(sizes, kind="stable").tolist():
        left = set(columns.indices[columns.indptr[unit] : columns.indptr[unit + 1]].tolist())
        while left and (last := max(left)) in pivots:
            left = left ^ pivots[last]
        if left:
            pivots[max(left)] = left
            kept.append(unit)
    return np.array(sorted(kept), dtype=np.int64)


def whole_factors(measured: sparse.csr_matrix) -> NDArray[np.float64]:
    """2 for units with half exponents, 1 for whole ones, 0 for others: no signs."""
    columns = np.arange(measured.shape[1])
    factor = np.ones(len(columns))
    for candidate in (2.0, 0.0):
        scaled = (measured @ sparse.diags(factor)).tocoo()
        broken = np.abs(scaled.data - scaled.data.round()) > 1e-9
        factor[np.isin(columns, scaled.col[broken])] = candidate
    return factor
