"""Meetings: what parts of a generator that move the same entry of a tensor add to its length.

|K|^2 is the sum over its parts of |K_a|^2, and of 2 <K_a, K_b> over all pairs. For a matrix W that
a unit scales along both axes that is -2 W_ii^2 beside |row i|^2 + |column i|^2, and for
W -> T W T^-1 along E_ij it is -2 W_ii W_jj.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

View = tuple[int, int, int]  # entries before an axis, along it and after it; axes may be joined
Scaled = tuple[View, Tensor, Tensor, Tensor]  # view, positions, units and rates along it
Mixed = tuple[int, Tensor, int]  # axis, positions (blocks, copies, size), sign
Entries = tuple[Tensor, Tensor, Tensor, Tensor]  # of generators: which one, row, column, weight


def scaled(parts: Sequence[Scaled], tensor: Tensor, units: int) -> Tensor:
    """2 <K_a, K_b> of every unit over all pairs of parts that scale it: (units,), float64."""
    squares, total = tensor.double().square(), tensor.new_zeros(units, dtype=torch.float64)
    if not tensor.numel():  # a shard without rows
        return total
    views = []
    for view in sorted({view for view, *_ in parts}):
        columns = zip(*(part[1:] for part in parts if part[0] == view), strict=True)
        where, unit, rates = (torch.cat(column).to(tensor.device) for column in columns)
        length = view[1]
        own, inverse = torch.unique(unit * length + where, return_inverse=True)
        rate = rates.new_zeros(len(own)).index_add(0, inverse, rates)
        apart = rates.new_zeros(len(own)).index_add(0, inverse, rates.square())
        unit, where = own // length, own % length
        along = squares.reshape(view).sum((0, 2))
        total = total.index_add(0, unit, (rate.square() - apart) * along[where])
        views.append((view, where, unit, rate))
    for (a, where_a, unit_a, rate_a), (b, where_b, unit_b, rate_b) in combinations(views, 2):
        table = _table(squares, a, b)
        rows = table.new_zeros(units, table.shape[1])
        rows = rows.index_add(0, unit_a, rate_a[:, None] * table[where_a])
        total = total.index_add(0, unit_b, 2 * rate_b * rows[unit_b, where_b])
    return total


def _table(squares: Tensor, a: View, b: View) -> Tensor:
    """Their sum over everything but two views, of which the first begins no later."""
    (before, m, after), (ahead, n, behind) = a, b
    if ahead % (before * m) == 0:
        return squares.reshape(before, m, ahead // (before * m), n, behind).sum((0, 2, 4))
    each = torch.arange(squares.numel(), device=squares.device)  # they have axes in common
    place = each // after % m * n + each // behind % n
    return squares.new_zeros(m * n).index_add(0, place, squares.reshape(-1)).reshape(m, n)


def mixed(parts: Sequence[Mixed], tensor: Tensor, entries: Entries, count: int) -> Tensor:
    """2 <K_a, K_b> of every generator over all pairs of parts: (blocks, count), float64.

    Parts of sign + multiply by the generator's matrix A, those of sign - by -A^T.
    """
    first, second = _pairs(entries[0])
    of, exact = entries[0][first], tensor.double()
    blocks = parts[0][1].shape[0]
    total = exact.new_zeros(blocks, count)
    for a, b in combinations(parts, 2):
        (i, j, w), (k, m, v) = _matrix(entries, a[2], first), _matrix(entries, b[2], second)
        overlap = _along_one if a[0] == b[0] else _across
        weights = (2 * w * v).to(total)
        total = total.index_add(1, of.to(total.device), weights * overlap(exact, a, b, i, j, k, m))
    return total


def _across(
    tensor: Tensor, a: Mixed, b: Mixed, i: Tensor, j: Tensor, k: Tensor, m: Tensor
) -> Tensor:
    """W_jk W_im of two axes, summed over copies and everything else: (blocks, pairs)."""
    table = tensor[..., None].movedim((a[0], b[0]), (0, 1)).flatten(2)
    rows, columns = a[1].to(tensor.device), b[1].to(tensor.device)
    own = table[rows[:, :, :, None, None], columns[:, None, None]]
    own = own.permute(2, 4, 0, 1, 3, 5).flatten(3)
    return (own[j, k] * own[i, m]).sum(2).mT


def _along_one(
    tensor: Tensor, a: Mixed, b: Mixed, i: Tensor, j: Tensor, k: Tensor, m: Tensor
) -> Tensor:
    """<row j, row m> of one axis where rows i and k are the same one: (blocks, pairs)."""
    rows = tensor.movedim(a[0], 0).reshape(tensor.shape[a[0]], -1)
    one, two = (x[1].to(tensor.device) for x in (a, b))
    same = (one[:, :, None, :, None] == two[:, None, :, None, :]).flatten(1, 2)  # i and k last
    products = torch.einsum("bcir,bejr->bceij", rows[one], rows[two]).flatten(1, 2)
    return (products[:, :, j, m] * same[:, :, i, k]).sum(1)


def _pairs(of: Tensor) -> tuple[Tensor, Tensor]:
    """Every two entries of one generator."""
    return tuple((of[:, None] == of).nonzero().unbind(1))  # type: ignore[return-value]


def _matrix(entries: Entries, sign: int, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and weights of A, or of -A^T."""
    _, row, column, weight = (x[chosen] for x in entries)
    return (row, column, weight) if sign > 0 else (column, row, -weight)
