"""A representation: how every element of a finite group moves the entries of a layer's output."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor


class Unfit(ValueError):
    """Why a layer cannot carry the group; the caller adds its place."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Representation:
    """(g x)[i] = sign[g, i] x[source[g, i]] for each element g, or (g x) = matrix[g] x.

    Permutations with signs cover regular representations, pixels and mirrored coordinates; a dense
    matrix stands where vectors are turned. The identity is the first element.
    """

    source: Tensor  # (|G|, n) int64
    sign: Tensor  # (|G|, n) float64 of 1 and -1
    matrix: Tensor | None = None  # (|G|, n, n) float64

    @property
    def size(self) -> int:
        """n, the number of entries."""
        return self.source.shape[1]

    @property
    def order(self) -> int:
        """|G|."""
        return len(self.source)

    @property
    def permutes(self) -> bool:
        """Whether entries only change places, as every pointwise function allows."""
        return self.matrix is None and bool((self.sign > 0).all())

    @property
    def rests(self) -> bool:
        """Whether nothing moves."""
        return self.permutes and bool((self.source == self.source[:1]).all())

    def characters(self) -> Tensor:
        """The trace of every element, (|G|,) float64."""
        if self.matrix is not None:
            return self.matrix.diagonal(dim1=1, dim2=2).sum(1)
        return (self.sign * (self.source == torch.arange(self.size))).sum(1)

    def dense(self) -> Tensor:
        """(|G|, n, n) float64."""
        if self.matrix is not None:
            return self.matrix
        made = torch.zeros(self.order, self.size, self.size, dtype=torch.float64)
        return made.scatter_(2, self.source[..., None], self.sign[..., None])

    def dual(self) -> "Representation":
        """The transposed inverse, by which the input side of a weight moves."""
        if self.matrix is None:
            return self
        return replace(self, matrix=torch.linalg.inv(self.matrix).mT.contiguous())

    def unsigned(self) -> "Representation":
        """The same exchange without signs, as factors move.

        Raises:
            Unfit: entries are mixed.
        """
        if self.matrix is not None:
            raise Unfit("factors cannot be tied where the group mixes the entries")
        return replace(self, sign=torch.ones_like(self.sign))

    def of(self, elements: Sequence[int]) -> "Representation":
        """The rows of some elements alone."""
        rows = list(elements)
        matrix = None if self.matrix is None else self.matrix[rows]
        return Representation(source=self.source[rows], sign=self.sign[rows], matrix=matrix)

    def same(self, other: "Representation") -> bool:
        """Whether both move alike."""
        if (self.matrix is None) != (other.matrix is None):
            return False
        if self.matrix is not None and other.matrix is not None:
            close = self.matrix.shape == other.matrix.shape
            return close and torch.allclose(self.matrix, other.matrix, atol=1e-9)
        return torch.equal(self.source, other.source) and torch.equal(self.sign, other.sign)


def still(order: int, n: int) -> Representation:
    """The trivial representation."""
    source = torch.arange(n).expand(order, n)
    return Representation(source=source, sign=torch.ones(order, n, dtype=torch.float64))


def product(parts: Sequence[Representation]) -> Representation:
    """The tensor product of representations, entries of the last one running fastest."""

    def two(a: Representation, b: Representation) -> Representation:
        shape = (a.order, a.size * b.size)
        source = (a.source[:, :, None] * b.size + b.source[:, None, :]).reshape(shape)
        sign = (a.sign[:, :, None] * b.sign[:, None, :]).reshape(shape)
        if a.matrix is None and b.matrix is None:
            return Representation(source=source, sign=sign)
        both = torch.einsum("gij,gkl->gikjl", a.dense(), b.dense())
        return Representation(source=source, sign=sign, matrix=both.reshape(*shape, shape[1]))

    return reduce(two, parts)


def stacked(parts: Sequence[Representation]) -> Representation:
    """The direct sum of representations."""
    starts = [sum(p.size for p in parts[:i]) for i in range(len(parts))]
    source = torch.cat([p.source + s for p, s in zip(parts, starts, strict=True)], dim=1)
    sign = torch.cat([p.sign for p in parts], dim=1)
    if all(p.matrix is None for p in parts):
        return Representation(source=source, sign=sign)
    each = zip(*(p.dense() for p in parts), strict=True)
    return Representation(
        source=source, sign=sign, matrix=torch.stack([_diagonal(e) for e in each])
    )


def factors(known: Representation, first: int) -> tuple[Representation, Representation] | None:
    """The two representations whose tensor product it is, the first of so many entries, if any.

    A sign that is the same all over the second goes to the first.
    """
    n = known.size // first
    if known.matrix is not None:
        return _dense_factors(known, first, n)
    source = known.source.reshape(-1, first, n)
    outer, inner = source[:, :, :1] // n, source[:, :1] % n
    lead, rest = _signs(known.sign.reshape(-1, first, n))
    if not torch.equal(outer * n + inner, source):
        return None
    if not torch.equal(lead * rest, known.sign.reshape(-1, first, n)):
        return None
    return (
        Representation(source=outer.squeeze(2).contiguous(), sign=lead.squeeze(2).contiguous()),
        Representation(source=inner.squeeze(1).contiguous(), sign=rest.squeeze(1).contiguous()),
    )


def _signs(sign: Tensor) -> tuple[Tensor, Tensor]:
    """Signs (|G|, first, n) as a product, of which a common one goes to the first."""
    lead, rest = sign[:, :, :1], sign[:, :1]
    if torch.equal(lead.expand_as(sign), sign):
        return lead, torch.ones_like(rest)
    if torch.equal(rest.expand_as(sign), sign):
        return torch.ones_like(lead), rest
    return lead, rest * rest[:, :, :1]


def _dense_factors(
    known: Representation, first: int, n: int
) -> tuple[Representation, Representation] | None:
    """A dense one beside a trivial one."""
    assert known.matrix is not None
    m = known.matrix.reshape(-1, first, n, first, n)
    for lead, part in ((False, m[:, 0, :, 0, :]), (True, m[:, :, 0, :, 0])):
        rest = still(known.order, n if lead else first)
        moving = replace(still(known.order, part.shape[1]), matrix=part.contiguous())
        pair = (moving, rest) if lead else (rest, moving)
        if product(pair).same(known):
            return pair
    return None


def summands(known: Representation, sizes: Sequence[int]) -> list[Representation] | None:
    """The representations whose direct sum it is, of these sizes, if any."""
    pieces, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        matrix = None if known.matrix is None else known.matrix[:, part, part]
        source = known.source[:, part] - start
        pieces.append(Representation(source=source, sign=known.sign[:, part], matrix=matrix))
        start += size
    inside = all(bool(((p.source >= 0) & (p.source < p.size)).all()) for p in pieces)
    return pieces if inside and start == known.size and stacked(pieces).same(known) else None


def _diagonal(blocks: Sequence[Tensor]) -> Tensor:
    made: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return made
