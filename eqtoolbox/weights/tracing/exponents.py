"""Exponents: how much every entry of a tensor is scaled, as linear forms in unknowns.

A tensor scaled by e^(s x), x[i, j, ...] = sum over terms of a form of some axes: a term lives on a
tuple of axes and holds one sparse row (a linear form in the unknowns) per index of these axes.
Parameters start with one unknown per index of every axis; a reshape that splits an axis leaves a
term on several axes together, so nothing is lost (heads x features of attention).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Form = Any  # scipy.sparse.csr_matrix (rows, UNKNOWNS): scipy comes without types
Indices = NDArray[np.int64]
UNKNOWNS = 2**31 - 2


@dataclass
class Exponent:
    """Sum of terms {axes: form}, axes ascending, rows in row-major order of these axes."""

    shape: tuple[int, ...]
    terms: dict[tuple[int, ...], Form] = field(default_factory=dict)

    def size(self, axes: tuple[int, ...]) -> int:
        return math.prod(self.shape[a] for a in axes)

    def add(self, axes: tuple[int, ...], form: Form) -> None:
        """Put a further term, merging it with one on the same axes."""
        axes_here = tuple(a for a in axes if self.shape[a] != 1)
        if form.nnz == 0:
            return
        old = self.terms.get(axes_here)
        total = form if old is None else clean(old + form)
        if total.nnz:
            self.terms[axes_here] = total
        else:
            self.terms.pop(axes_here, None)

    def scaled(self, factor: float) -> Exponent:
        return Exponent(self.shape, {a: f * factor for a, f in self.terms.items()})

    def plus(self, other: Exponent, factor: float = 1.0) -> Exponent:
        """Exponent of an elementwise product of tensors of the same shape."""
        total = Exponent(self.shape, dict(self.terms))
        for axes, form in other.terms.items():
            total.add(axes, form * factor)
        return total

    def turned(self, *among: int) -> Exponent:
        """The terms that touch the axes `among` with the opposite sign."""
        terms = {a: f * -1.0 if set(a) & set(among) else f for a, f in self.terms.items()}
        return Exponent(self.shape, terms)

    def broadcast(self, shape: tuple[int, ...]) -> Exponent:
        """The same exponent on a shape that the tensor is expanded to."""
        lead = len(shape) - len(self.shape)
        wide = Exponent(tuple(shape))
        for axes, form in self.terms.items():
            wide.add(tuple(a + lead for a in axes), form)
        return wide

    def on(self, axes: tuple[int, ...], target: tuple[int, ...]) -> Form:
        """The term of `axes`, repeated over the further axes of `target`."""
        return self.terms[axes][rows_within(self.shape, axes, target)]

    def joined(self, *among: int) -> tuple[tuple[int, ...], Form] | None:
        """All terms that touch the axes `among`, as one on their union; None if there are none."""
        touching = [axes for axes in self.terms if set(axes) & set(among)]
        if not touching:
            return None
        union = tuple(sorted(set().union(*touching)))
        total = self.on(touching[0], union)
        for axes in touching[1:]:
            total = total + self.on(axes, union)
        return union, clean(total)

    def without(self, *among: int) -> Exponent:
        """Only the terms that do not touch the axes `among`."""
        kept = {a: f for a, f in self.terms.items() if not set(a) & set(among)}
        return Exponent(self.shape, kept)


def clean(form: Form) -> Form:
    form.eliminate_zeros()
    return form


def rows_within(shape: tuple[int, ...], axes: tuple[int, ...], target: tuple[int, ...]) -> Indices:
    """For each row-major index of the axes `target`, the row of the term on `axes` it reads."""
    grid = np.arange(math.prod(shape[a] for a in axes), dtype=np.int64)
    grid = grid.reshape([shape[a] if a in axes else 1 for a in target])
    full = np.broadcast_to(grid, [shape[a] for a in target])
    return np.ascontiguousarray(full).reshape(-1)


def indices_of(shape: tuple[int, ...], axes: tuple[int, ...], keep: tuple[int, ...]) -> Indices:
    """For each row of a term on `axes`, the row-major index of its part on `keep`."""
    return rows_within(shape, tuple(a for a in axes if a in keep), axes)


@dataclass
class Constraints:
    """Linear forms that must vanish, in unknowns counted as they are made.

    A sum makes an unknown of its own for the constant that it passes on: kept free in the
    nullspace, it keeps the other vectors local.
    """

    count: int = 0
    rows: list[Form] = field(default_factory=list)

    def unknowns(self, number: int) -> Form:
        """One new unknown per row."""
        columns = np.arange(self.count, self.count + number)
        self.count += number
        ones, starts = np.ones(number), np.arange(number + 1)
        return sparse.csr_matrix((ones, columns, starts), shape=(number, UNKNOWNS))

    def vanish(self, form: Form) -> None:
        form = clean(form)
        if form.nnz:
            self.rows.append(form[np.flatnonzero(np.diff(form.indptr))])

    def pin(self, exponent: Exponent) -> None:
        """The tensor must not be scaled at all."""
        left = exponent
        constant = sparse.csr_matrix((1, UNKNOWNS))
        while left.terms:
            axes = next(iter(left.terms))
            found = left.joined(*axes) if axes else None
            if found is None:
                constant = constant + left.terms[axes]
                left = Exponent(left.shape, {a: f for a, f in left.terms.items() if a != axes})
                continue
            union, form = found
            again = Exponent(left.shape, dict(left.terms))
            while (wider := again.joined(*union)) is not None and wider[0] != union:
                union, form = wider
            self.vanish(form - form[np.zeros(form.shape[0], dtype=np.int64)])
            constant = constant + form[:1]
            left = left.without(*union)
        self.vanish(constant)

    def equate(self, first: Exponent, second: Exponent) -> None:
        """Two tensors of one shape must be scaled alike."""
        self.pin(first.plus(second, -1.0))

    def contract(self, exponent: Exponent, *axes: int) -> Exponent:
        """The exponent after a sum over `axes`, along which it has to be constant."""
        found = exponent.joined(*axes)
        rest = exponent.without(*axes)
        if found is None:
            return rest
        union, form = found
        kept = tuple(a for a in union if a not in axes)
        group = indices_of(exponent.shape, union, kept)
        first = np.full(int(group.max(initial=0)) + 1, -1, dtype=np.int64)
        first[group[::-1]] = np.arange(len(group))[::-1]
        constants = self.unknowns(len(first))
        self.vanish(form - constants[group])
        result = Exponent(rest.shape, rest.terms)
        result.add(kept, constants)
        return result


def renumbered(exponent: Exponent, shape: tuple[int, ...], axis_of: dict[int, int]) -> Exponent:
    """The exponent with axes renamed by `axis_of` (after a permutation or removal of axes)."""
    result = Exponent(shape)
    for axes, form in exponent.terms.items():
        named = [axis_of[a] for a in axes]
        order = np.argsort(named)
        grid = np.arange(form.shape[0]).reshape([exponent.shape[a] for a in axes] or [1])
        rows = grid.transpose(order.tolist()).reshape(-1) if axes else np.zeros(1, dtype=np.int64)
        result.add(tuple(sorted(named)), form[rows])
    return result


def reshaped(exponent: Exponent, shape: tuple[int, ...]) -> Exponent:
    """The exponent after a view: runs of axes merge and split; terms move with them."""
    result = Exponent(shape)
    blocks = _blocks(exponent.shape, shape)
    for axes, form in exponent.terms.items():
        old, new = [], []
        for source, target in blocks:
            if set(source) & set(axes):
                old += source
                new += target
        wide = exponent.on(axes, tuple(old)) if old else form
        for kept, rows in [_simplified(wide, tuple(shape[a] for a in new))]:
            result.add(tuple(new[k] for k in kept), rows)
    return result


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes with equal products, side by side."""
    blocks, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        a = old[i] if left else 1
        b = new[j] if right else 1
        i, j = i + len(left), j + len(right)
        while a != b:
            if a < b:
                a, left, i = a * old[i], [*left, i], i + 1
            else:
                b, right, j = b * new[j], [*right, j], j + 1
        blocks.append((left, right))
    return blocks


def _simplified(form: Form, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Form]:
    """Drop axes along which all rows are the same; returns the axes kept and the rows."""
    kept = [k for k, n in enumerate(shape) if n != 1]
    for axis in list(kept):
        sizes = [shape[k] for k in kept]
        grid = np.arange(form.shape[0]).reshape(sizes)
        first = np.take(grid, [0], axis=kept.index(axis))
        rows = np.broadcast_to(first, sizes).reshape(-1)
        if len(kept) > 1 and clean(form - form[rows]).nnz == 0:
            form = form[first.reshape(-1)]
            kept.remove(axis)
    return tuple(kept), form
