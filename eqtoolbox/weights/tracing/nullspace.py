"""The nullspace of a large sparse system with few unknowns a row, in reduced echelon form.

Most constraints say x_i = x_j or x_i = 0: these are merged all at once; the rest is eliminated row
by row. The basis is the one of the reduced echelon form for a given order of the unknowns, which
keeps it local: one vector per free unknown, with integer-like entries.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

Array = NDArray[np.float64]
_SMALL = 1e-9


def nullspace(system: sparse.csr_matrix, rank: NDArray[np.int64]) -> sparse.csr_matrix:
    """Basis of {x : system x = 0}, one column a vector.

    Args:
        system: (constraints, unknowns).
        rank: (unknowns,), those of high rank are expressed by those of low rank.

    Returns:
        (unknowns, dimension).

    Example:
        >>> nullspace(sparse.csr_matrix([[1.0, 1.0, 0.0]]), np.array([0, 1, 0])).toarray().tolist()
        [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]
    """
    count = system.shape[1]
    leader, rows = _merged(system, rank)
    zero = leader < 0
    solved = _eliminated(rows, rank)
    free = [v for v in np.unique(leader[~zero]) if v not in solved]
    column = {int(v): k for k, v in enumerate(free)}
    expanded: dict[int, dict[int, float]] = {}

    def value(v: int) -> dict[int, float]:
        if v in column:
            return {column[v]: 1.0}
        stack = [v]
        while stack:
            top = stack[-1]
            missing = [u for u in solved[top] if u in solved and u not in expanded]
            if missing:
                stack += missing
                continue
            total: dict[int, float] = {}
            for u, c in solved[top].items():
                for k, d in ({column[u]: 1.0} if u in column else expanded[u]).items():
                    total[k] = total.get(k, 0.0) + c * d
            expanded[top] = {k: c for k, c in total.items() if abs(c) > _SMALL}
            stack.pop()
        return expanded[v]

    # a small matrix of the leaders, whose rows are then repeated for all that they lead
    leaders, row_of = np.unique(leader[~zero], return_inverse=True)
    where: list[int] = []
    which: list[int] = []
    entries: list[float] = []
    for row, v in enumerate(leaders.tolist()):
        for k, c in value(v).items():
            where.append(row)
            which.append(k)
            entries.append(c)
    small = sparse.csr_matrix((entries, (where, which)), shape=(len(leaders), len(free)))
    chosen = (np.ones(len(row_of)), (np.flatnonzero(~zero), row_of))
    return (sparse.csr_matrix(chosen, shape=(count, len(leaders))) @ small).tocsr()


def _merged(
    system: sparse.csr_matrix, rank: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[dict[int, float]]]:
    """Unknowns merged by x_i = x_j and x_i = 0 until nothing changes: leader (-1: zero), rows."""
    count = system.shape[1]
    leader = np.arange(count)
    order = np.argsort(rank, kind="stable")
    place = np.empty(count, dtype=np.int64)
    place[order] = np.arange(count)
    left = system
    while True:
        keep = leader >= 0
        merge = sparse.csr_matrix(
            (np.ones(int(keep.sum())), (np.flatnonzero(keep), leader[keep])), shape=(count, count)
        )
        left = (left @ merge).tocsr()
        left.data[np.abs(left.data) < _SMALL] = 0
        left.eliminate_zeros()
        sizes = np.diff(left.indptr)
        left = left[np.flatnonzero(sizes)]
        sizes = np.diff(left.indptr)
        starts = left.indptr[:-1]
        ones = starts[sizes == 1]
        twos = starts[sizes == 2]
        twos = twos[np.abs(left.data[twos] + left.data[twos + 1]) < _SMALL]
        if not len(ones) and not len(twos):
            break
        pairs = (left.indices[twos], left.indices[twos + 1])
        graph = sparse.coo_matrix((np.ones(len(twos)), pairs), shape=(count, count))
        _, label = connected_components(graph, directed=False)
        best = np.full(int(label.max()) + 1, count, dtype=np.int64)
        np.minimum.at(best, label, place)
        zeroed = np.zeros(len(best), dtype=bool)
        zeroed[label[left.indices[ones]]] = True
        target = np.where(zeroed[label], -1, order[best[label]])
        leader = np.where(leader >= 0, target[leader], -1)
    spans = zip(left.indptr[:-1], left.indptr[1:], strict=True)
    rows = [
        dict(zip(left.indices[a:b].tolist(), left.data[a:b].tolist(), strict=True))
        for a, b in spans
    ]
    return leader, rows


def _eliminated(
    rows: list[dict[int, float]], rank: NDArray[np.int64]
) -> dict[int, dict[int, float]]:
    """x_pivot = sum of c x for every pivot, the unknown of highest rank in its reduced row."""
    solved: dict[int, dict[int, float]] = {}
    for row in rows:
        left = dict(row)
        pending = [v for v in left if v in solved]
        while pending:
            for v in pending:
                factor = left.pop(v, 0.0)
                for u, c in solved[v].items():
                    total = left.get(u, 0.0) + factor * c
                    if abs(total) > _SMALL:
                        left[u] = total
                    else:
                        left.pop(u, None)
            pending = [v for v in left if v in solved]
        if left:
            pivot = max(left, key=lambda v: (rank[v], v))
            lead = left.pop(pivot)
            solved[pivot] = {u: -c / lead for u, c in left.items()}
    return solved
