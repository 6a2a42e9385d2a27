"""Axes as trees: every axis of a tensor is an atom, a product of axes, or several in a row.

Axes that an operation ties are one and the same (union-find), so that whatever refines one of
them later (a view, a slice, a concatenation) refines it everywhere. Tensors only refer to axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["atom", "product", "row", "flat"]
SMALL = 64  # entries of an axis up to which its indices may all be told apart


class Dim:
    """One axis. A `product` is row-major, a `row` has its parts end to end.

    Along a `flat` axis nothing may vary: what was known of it is given up.
    """

    __slots__ = ("kind", "known", "parent", "parts", "size")

    def __init__(self, size: int, kind: Kind = "atom", parts: Iterable[Dim] = ()) -> None:
        self.size, self.kind, self.parts = size, kind, list(parts)
        self.parent: Dim | None = None
        self.known: list[AxisBlock] | None = None  # its blocks, once they have been asked for


@dataclass(frozen=True)
class Stride:
    """An atom within a block: `size` entries, `step` apart along the axis."""

    size: int
    step: int
    atom: Dim


@dataclass(frozen=True)
class AxisBlock:
    """Entries of an axis that are a product of atoms, from `offset` on."""

    offset: int
    strides: tuple[Stride, ...]

    @property
    def place(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Where its entries are, by numbers alone."""
        return self.offset, tuple((s.size, s.step) for s in self.strides)


def find(dim: Dim) -> Dim:
    """What an axis has become."""
    while dim.parent is not None:
        if dim.parent.parent is not None:
            dim.parent = dim.parent.parent
        dim = dim.parent
    return dim


def resolve(dim: Dim) -> Dim:
    """The same with products of products, and rows of rows, written out."""
    dim = find(dim)
    if dim.kind not in ("product", "row"):
        return dim
    parts: list[Dim] = []
    for part in map(find, dim.parts):
        if part.kind in ("product", "row"):
            part = resolve(part)
        if part.kind == dim.kind:
            parts += part.parts
        elif part.size != 1 or dim.kind == "row":
            parts.append(part)
    dim.parts = parts
    if len(parts) == 1:
        dim.parent = parts[0]
        return parts[0]
    if not parts:
        dim.kind = "atom"
    return dim


def product(dims: Iterable[Dim]) -> Dim:
    """Axes merged by a view, the last one fastest."""
    parts = [d for d in map(find, dims) if d.size != 1]
    if len(parts) == 1:
        return parts[0]
    return Dim(math.prod(d.size for d in parts), "product" if parts else "atom", parts)


def row(dims: Iterable[Dim]) -> Dim:
    """Axes end to end."""
    parts = [d for d in dims if d.size]
    return parts[0] if len(parts) == 1 else Dim(sum(d.size for d in parts), "row", parts)


def flatten(dim: Dim) -> Dim:
    """Nothing may vary along an axis, nor along the parts of it that others hold."""
    dim = find(dim)
    if dim.size != 1 and dim.kind != "flat":
        parts, dim.kind, dim.parts = dim.parts, "flat", []
        for part in parts:
            flatten(part)
    return dim


def shatter(dim: Dim) -> None:
    """Every index by itself: for small axes whose views do not line up."""
    dim = resolve(dim)
    if dim.size == 1 or dim.kind == "flat":
        return
    for part in list(dim.parts):
        shatter(part)
    dim = find(dim)
    dim.kind, dim.parts = "row", [Dim(1) for _ in range(dim.size)]


def _may_shatter(*dims: Dim) -> bool:
    small = all(d.size <= SMALL for d in dims)
    return small and all(a.kind != "flat" for d in dims for a in atoms(d))


def factor(dim: Dim, size: int) -> tuple[Dim, Dim]:
    """(slow, fast) whose product the axis is, the fast one of this size."""
    dim = resolve(dim)
    slow, fast = Dim(dim.size // size), Dim(size)
    if size == 1:
        return dim, fast
    if size == dim.size:
        return slow, dim
    if dim.kind == "flat":
        return flatten(slow), flatten(fast)
    if dim.kind == "atom":
        dim.kind, dim.parts = "product", [slow, fast]
        return slow, fast
    if dim.kind == "product":
        halves = _divided(dim, size)
        if halves is not None:
            return halves
        if not _may_shatter(dim):
            flatten(dim)
            return flatten(slow), flatten(fast)
        shatter(dim)
    unify(dim, product([slow, fast]))
    return slow, fast


def _divided(dim: Dim, size: int) -> tuple[Dim, Dim] | None:
    """The parts of a product on either side, one of them factored where need be."""
    parts, low, done = list(dim.parts), list[Dim](), 1
    while done < size:
        part, need = parts.pop(), size // done
        if size % done:
            return None
        if need % part.size == 0:
            low.insert(0, part)
            done *= part.size
        elif part.size % need == 0:
            slow, fast = factor(part, need)
            parts.append(slow)
            low.insert(0, fast)
            done *= need
        else:
            return None
    return (product(parts), product(low)) if done == size else None


def cut(dim: Dim, start: int, end: int) -> Dim:
    """The entries from start to end, so that they are an axis of their own."""
    dim = resolve(dim)
    if start == 0 and end == dim.size:
        return dim
    if end <= start:
        return Dim(0)
    if dim.kind == "flat":
        return Dim(end - start, "flat")
    if dim.kind == "atom":
        middle = Dim(end - start)
        dim.kind = "row"
        dim.parts = [d for d in (Dim(start), middle, Dim(dim.size - end)) if d.size]
        return middle
    if dim.kind == "row":
        at, found = 0, []
        for part in list(dim.parts):
            low, high = max(start - at, 0), min(end - at, part.size)
            if low < high:
                found.append(cut(part, low, high))
            at += part.size
        return row(found)
    return _cut_product(dim, start, end)


def _cut_product(dim: Dim, start: int, end: int) -> Dim:
    slow, fast = dim.parts[0], product(dim.parts[1:])
    (first, before), (last, after) = divmod(start, fast.size), divmod(end, fast.size)
    found = []
    if before:
        cut(slow, first, first + 1)
        if last == first or (last == first + 1 and after == 0):
            return cut(fast, before, after or fast.size)
        found.append(cut(fast, before, fast.size))
        first += 1
    if last > first:
        found.append(product([cut(slow, first, last), fast]))
    if after:
        cut(slow, last, last + 1)
        found.append(cut(fast, 0, after))
    return row(found)


def unify(first: Dim, second: Dim) -> None:
    """Two axes that an operation runs along together are one."""
    first, second = resolve(first), resolve(second)
    if first is second:
        return
    if first.size != second.size:
        raise ValueError(f"axes of {first.size} and {second.size} entries are not one")
    if first.size > 1 and "flat" in (first.kind, second.kind):
        flatten(first)
        flatten(second)
    elif first.size > 1 and "atom" not in (first.kind, second.kind):
        _match(first, second)
    elif second.kind == "atom" and first.kind != "atom":
        first, second = second, first
    first, second = find(first), find(second)
    if first is not second:
        first.parent = second


def _match(first: Dim, second: Dim) -> None:
    """The parts of two axes, tied one by one."""
    if first.kind == second.kind == "product":
        _match_products(first, second)
    elif first.kind == second.kind == "row":
        _match_rows(first, second)
    else:
        parts, whole = (first, second) if first.kind == "row" else (second, first)
        at = 0
        for part in list(parts.parts):
            unify(part, cut(whole, at, at + part.size))
            at += part.size


def _match_products(first: Dim, second: Dim) -> None:
    left, right = list(first.parts), list(second.parts)
    while left and right:
        a, b = _last(left), _last(right)
        if a.size == b.size:
            unify(a, b)
        elif a.size % b.size == 0:
            slow, fast = factor(a, b.size)
            unify(fast, b)
            left.append(slow)
        elif b.size % a.size == 0:
            slow, fast = factor(b, a.size)
            unify(fast, a)
            right.append(slow)
        elif _may_shatter(first, second):
            shatter(first)
            shatter(second)
            unify(first, second)
            return
        else:
            flatten(first)
            flatten(second)
            return


def _last(dims: list[Dim]) -> Dim:
    """The fastest of these, taken off; a product gives its own."""
    dim = resolve(dims.pop())
    while dim.kind == "product":
        dims += dim.parts
        dim = resolve(dims.pop())
    return dim


def _match_rows(first: Dim, second: Dim) -> None:
    left, right = list(first.parts)[::-1], list(second.parts)[::-1]
    while left and right:
        a, b = resolve(left.pop()), resolve(right.pop())
        if a.size > b.size:
            left.append(cut(a, b.size, a.size))
            a = cut(a, 0, b.size)
        elif b.size > a.size:
            right.append(cut(b, a.size, b.size))
            b = cut(b, 0, a.size)
        unify(a, b)


def atoms(dim: Dim) -> Iterator[Dim]:
    """What an axis is made of in the end."""
    dim = resolve(dim)
    if dim.kind in ("atom", "flat"):
        yield dim
    for part in dim.parts:
        yield from atoms(part)
