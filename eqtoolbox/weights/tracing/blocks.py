"""Blocks: an axis as disjoint products of atoms, once its structure is final."""

import itertools
import math
from collections.abc import Sequence

from eqtoolbox.weights.tracing.dims import AxisBlock, Dim, Stride, find, resolve

Choice = tuple[int, ...]  # a block of each axis
Slot = tuple[int, int]  # axis, stride of its block
Place = tuple[object, ...]  # where the entries of a block are, by numbers alone


def blocks(dim: Dim) -> list[AxisBlock]:
    """The blocks of an axis.

    Example:
        >>> from eqtoolbox.weights.tracing.dims import cut
        >>> axis = Dim(6)
        >>> _ = cut(axis, 0, 2)
        >>> [block.place for block in blocks(axis)]
        [(0, ((2, 1),)), (2, ((4, 1),))]
    """
    dim = find(dim)
    if dim.known is None:
        dim = resolve(dim)
        dim.known = _found(dim)
    return dim.known


def _found(dim: Dim) -> list[AxisBlock]:
    if dim.size == 1:
        return [AxisBlock(0, ())]
    if dim.kind in ("atom", "flat"):
        return [AxisBlock(0, (Stride(dim.size, 1, dim),))]
    if dim.kind == "row":
        starts = itertools.accumulate((p.size for p in dim.parts), initial=0)
        pairs = zip(starts, dim.parts, strict=False)
        return [AxisBlock(at + b.offset, b.strides) for at, part in pairs for b in blocks(part)]
    found, size = [AxisBlock(0, ())], 1
    for part in reversed(dim.parts):
        slower = [
            (size * b.offset, tuple(Stride(s.size, s.step * size, s.atom) for s in b.strides))
            for b in blocks(part)
        ]
        found = [
            AxisBlock(at + b.offset, (*strides, *b.strides))
            for at, strides in slower
            for b in found
        ]
        size *= part.size
    return found


def size_of(dim: Dim) -> int:
    """Number of entries, which are as many whatever an axis becomes."""
    return dim.size


def together(dims: Sequence[Dim]) -> dict[Place, tuple[Choice, list[Slot]]]:
    """The blocks of axes taken as one, row-major: by their place the choice, and its slots."""
    sizes = [size_of(d) for d in dims]
    steps = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    found: dict[Place, tuple[Choice, list[Slot]]] = {}
    for choice in itertools.product(*(range(len(blocks(d))) for d in dims)):
        offset, strides, slots = 0, list[tuple[int, int, bool]](), list[Slot]()
        for axis, (dim, number, step) in enumerate(zip(dims, choice, steps, strict=True)):
            block = blocks(dim)[number]
            offset += block.offset * step
            for k, stride in enumerate(block.strides):
                flat, apart = stride.atom.kind == "flat", stride.step * step
                if flat and strides and strides[-1][1:] == (stride.size * apart, True):
                    strides[-1] = (strides[-1][0] * stride.size, apart, True)
                else:
                    strides.append((stride.size, apart, flat))
                if not flat:
                    slots.append((axis, k))
        found[offset, tuple(strides)] = choice, slots
    return found


def runs(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes with equal products, side by side.

    Example:
        >>> runs((2, 3, 4), (6, 4))
        [([0, 1], [0]), ([2], [1])]
    """
    found, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        a, b = old[i] if left else 1, new[j] if right else 1
        i, j = i + len(left), j + len(right)
        while a != b:
            if a < b:
                a, left, i = a * old[i], [*left, i], i + 1
            else:
                b, right, j = b * new[j], [*right, j], j + 1
        found.append((left, right))
    return found
