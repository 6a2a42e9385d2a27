"""Gram forms: axes that matrices of an algebra mix, with charges from rows paired with rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.weights.forms.algebra import Algebra, AlgebraEntries
from eqtoolbox.weights.forms.form import Form, Moments, Spread, summed
from eqtoolbox.weights.forms.held import StackLayout
from eqtoolbox.weights.forms.matrix_view import MatrixPart, MatrixView, SignedSums, joined, stretch
from eqtoolbox.weights.forms.meeting import Mixed, mixed
from eqtoolbox.weights.forms.stack import Owned, Pair, Parameters, Points, Stack

SMALL = 16  # dimensions up to which no sketch is made


@dataclass(frozen=True, eq=False)
class MatrixLeg:
    """One tensor's part: the axis entries that block b's matrix mixes, once per copy."""

    name: str
    axis: int
    positions: Tensor  # (blocks, copies, size), indices along the axis
    sign: int  # +1: multiplied by e^A, -1: by e^-A^T

    @cached_property
    def stretch(self) -> tuple[int, int] | None:
        """Where along the axis they begin and end if they lie side by side, in order."""
        return stretch(self.positions)

    def gather(self, tensor: Tensor) -> Tensor:
        """(blocks, copies, size, rest)."""
        rows = tensor.movedim(self.axis, 0)
        rows = rows.reshape(rows.shape[0], -1)
        if self.stretch is not None:
            return rows[slice(*self.stretch)].reshape(*self.positions.shape, -1)
        return rows[self.positions.to(rows.device)]

    def scatter(self, blocks: Tensor, into: Tensor) -> Tensor:
        """Writes the gathered entries into a tensor, which is handed back."""
        rows = into.movedim(self.axis, 0)
        new = blocks.reshape(-1, *rows.shape[1:])
        if self.stretch is not None:
            rows[slice(*self.stretch)] = new
        else:
            rows[self.positions.to(rows.device).reshape(-1)] = new
        return into

    def mixed(self, tensor: Tensor, plus: Tensor, minus: Tensor, into: Tensor) -> Tensor:
        """`into`, written over by what the matrices of its sign make of the tensor's entries."""
        matrix = (plus if self.sign > 0 else minus).to(tensor)
        return self.scatter(torch.einsum("bij,bcjr->bcir", matrix, self.gather(tensor)), into)


@dataclass(frozen=True, kw_only=True, eq=False)
class Gram(Form):
    """T_A: in -> e^A in, out -> out e^-A for every block, A in a Lie algebra of matrices.

    Symmetric A conserve <A, D> / 2 with D = sum over legs of sign X X^T, X the mixed axis first.
    """

    legs: tuple[MatrixLeg, ...]
    algebra: Algebra

    @classmethod
    def of(cls, legs: tuple[MatrixLeg, ...], dimension: int, algebra: Algebra) -> "Gram":
        """The form of these legs."""
        form = cls(
            legs=legs,
            algebra=algebra,
            dimension=dimension,
            contains=algebra.contains,
            large=algebra.large and legs[0].positions.shape[2] > SMALL,
            balance=algebra.balance,
        )
        return replace(form, balance=None, unbalanced=_CONJUGATES) if _conjugates(legs) else form

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(leg.name for leg in self.legs))

    @property
    def blocks(self) -> int:
        """Number of blocks (heads)."""
        return self.legs[0].positions.shape[0]

    @property
    def size(self) -> int:
        """d, the size of a block's matrix."""
        return self.legs[0].positions.shape[2]

    @property
    def charges(self) -> int:
        return self.blocks * self.algebra.charges(self.size)

    @property
    def key(self) -> tuple[Any, ...]:
        return type(self).__name__, self.algebra, self.size

    @cached_property
    def apart(self) -> bool:
        by_name: dict[str, list[MatrixLeg]] = {}
        for leg in self.legs:
            by_name.setdefault(leg.name, []).append(leg)
        for own in by_name.values():
            moved = [k for leg in own for k in leg.positions.flatten().tolist()]
            if len({leg.axis for leg in own}) > 1 or len(set(moved)) < len(moved):
                return False
        return True

    def meetings(self, points: Points) -> Tensor:
        tensors = points.whole(0, self.names)  # charges are as many as their entries
        parts: dict[str, list[Mixed]] = {}
        for leg in self.legs:
            parts.setdefault(leg.name, []).append((leg.axis, leg.positions, leg.sign))
        own = self.algebra.generators(self.size)
        entries = own.of, own.row, own.column, own.weight
        found = [mixed(of, tensors[name], entries, own.count) for name, of in parts.items()]
        total = torch.stack(found).sum(0)
        return (total.mT if self.algebra.blocks_first else total).reshape(-1)

    def matrices(self, coefficients: Tensor) -> Tensor:
        """A of every block, (blocks, d, d)."""
        return self.algebra.matrices(coefficients, self.blocks, self.size)

    def flow(self, coefficients: Tensor) -> Callable[[Parameters], dict[str, Tensor]]:
        a = self.matrices(coefficients)
        plus = torch.matrix_exp(a)
        minus = torch.linalg.inv(plus).mT  # e^-A^T

        def moved(tensors: Parameters) -> dict[str, Tensor]:
            made: dict[str, Tensor] = {}
            for leg in self.legs:
                if leg.name in tensors:
                    old = made.get(leg.name, tensors[leg.name])
                    into = old if isinstance(tensors, Owned) else old.clone()
                    made[leg.name] = leg.mixed(old, plus, minus, into)
            return made

        return moved

    def _summed(self, tensors: Parameters, plus: Tensor, minus: Tensor) -> dict[str, Tensor]:
        given = [(leg, tensors[leg.name]) for leg in self.legs if leg.name in tensors]
        parts = ((g.name, g.mixed(x, plus, minus, torch.zeros_like(x))) for g, x in given)
        return summed(parts)

    def tangent(self, tensors: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        a = self.matrices(coefficients)
        return self._summed(tensors, a, -a.mT)

    def pullback(
        self, tensors: Parameters, coefficients: Tensor, cotangent: Parameters
    ) -> dict[str, Tensor]:
        a = self.matrices(coefficients)
        return self._summed(cotangent, a.mT, -a)

    @classmethod
    def together(cls, forms: Sequence["Gram"], layout: StackLayout) -> "Grams":
        return Grams(forms, layout)


class Grams(Moments):
    """Gram forms of one algebra and one size d: X Y^T of every leg, (pairs, legs, d, d).

    A leg here is one block of one tensor; those of one stack that take the same part of a tensor
    are multiplied together.
    """

    def __init__(self, forms: Sequence[Gram], layout: StackLayout) -> None:
        self.forms: Sequence[Gram] = forms
        self.size, self.blocks = forms[0].size, sum(f.blocks for f in forms)
        self.views: list[tuple[int, MatrixView]] = []  # each with its first leg
        where, signs, owners, at = [], [], list[tuple[str, int]](), 0
        for part in _parts(forms, layout):
            shape, names = layout.groups[part.number]
            view = MatrixView(part.number, part.axis, part.positions, shape[0])
            view.number = layout.rows_stay(part.number, view.rows_together)
            self.views.append((at, view))
            for index, name in enumerate(names):
                block, sign = part.of(index)
                where.append(block)
                signs.append(sign)
                owners.append((name, view.blocks))
            at += len(names) * view.blocks
        self.owners, self.shape = owners, (at, self.size, self.size)
        self.block = torch.cat(where)  # of every leg
        self.signed = SignedSums(self.block, torch.cat(signs), self.blocks)
        self._generators = _spread(forms[0].algebra.generators(self.size), self.size)
        self._upper = _spread(forms[0].algebra.symmetric(self.size), self.size)

    def _each(
        self, spread: Spread, matrices: Tensor, magnitude: int = 0, blocks_first: bool = False
    ) -> Tensor:
        """What a spread makes of every block's matrix, (pairs, blocks, d, d), form by form."""
        found = spread.of(matrices.reshape(-1, self.size**2), magnitude)
        found = found.view(len(matrices), self.blocks, -1)
        if not blocks_first:
            return found.flatten(1)
        parts = torch.split(found, [f.blocks for f in self.forms], 1)
        return torch.cat([part.mT.flatten(1) for part in parts], 1)

    def add(self, stack: Stack, points: Points, pairs: Sequence[Pair], moments: Tensor) -> None:
        used = dict.fromkeys(point for pair in pairs for point in pair)
        for start, view in self.views:
            for tensors, own in view.parts(stack) if view.number == stack.number else ():
                legs = slice(start + own.start, start + own.stop)
                given = {p: self.seen(view.of(stack, p, tensors), legs) for p in used}
                for k, (a, b) in enumerate(pairs):
                    moments[k, legs].baddbmm_(given[a], given[b].mT)

    def seen(self, matrices: Tensor, legs: slice) -> Tensor:
        """What is paired of the matrices X of these legs: (legs, rows, everything else)."""
        return matrices

    @property
    def units(self) -> Tensor:
        """The blocks: entries of a matrix depend on the basis of the axis."""
        return torch.arange(self.blocks).repeat_interleave(sum(self.counts) // self.blocks)

    def pair(self, moments: Tensor) -> Tensor:
        total = self.signed.total(moments)
        return self._each(self._upper, total + total.mT)

    def scales(self, moments: Tensor) -> Tensor:
        """Of the lengths of the rows of every leg, whatever its sign."""
        roots = moments[0].diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        return self._each(self._upper, self.signed.outer(roots)[None])[0]

    def slopes(self, moments: Tensor) -> Tensor:
        """A multiplies legs of sign + and -A^T those of sign -; gram_ij pairs row i of a."""
        plus, minus = self.signed.sides(moments)
        first = self.forms[0].algebra.blocks_first
        return self._each(self._generators, (plus.mT + minus)[None], blocks_first=first)[0]

    def sizes(self, moments: Tensor) -> Tensor:
        """A_ij reads row j of a + leg, row i of a - leg: one entry a row and column of each A."""
        own = moments[:1].diagonal(dim1=-2, dim2=-1).clamp_min(0)
        plus, minus = (side.abs() for side in self.signed.sides(own))
        both, first = plus[:, None, :] + minus[:, :, None], self.forms[0].algebra.blocks_first
        squares = self._each(self._generators, both[None], magnitude=2, blocks_first=first)
        return squares[0].sqrt()


def _spread(entries: AlgebraEntries, size: int) -> Spread:
    """From one matrix to what the entries are of."""
    where = entries.row * size + entries.column
    return Spread(where, entries.of, entries.weight, entries.count)


def _parts(forms: Sequence[Gram], layout: StackLayout) -> list[MatrixPart]:
    """What is mixed of the tensors of every shape, in order."""
    found: dict[tuple[Any, ...], MatrixPart] = {}
    start = 0
    for form in forms:
        for leg in form.legs:
            number, index = layout.place[leg.name]
            cut = *leg.positions.shape, *leg.positions.reshape(-1).tolist()
            key, again = (number, leg.axis, *cut), 0
            while index in (of.legs if (of := found.get((again, *key))) else {}):
                again += 1  # the same part of a tensor once more
            fresh = MatrixPart(number=number, axis=leg.axis, positions=leg.positions, again=again)
            blocks = torch.arange(start, start + form.blocks)
            signs = torch.full((form.blocks,), float(leg.sign), dtype=torch.float64)
            found.setdefault((again, *key), fresh).legs[index] = blocks, signs
        start += form.blocks
    return joined(found.values())


_CONJUGATES = (
    "acts on both sides of one matrix, W -> T W T^-1: its canonical point has no closed form"
)


def _conjugates(legs: Sequence[MatrixLeg]) -> bool:
    axes = {(leg.name, leg.axis) for leg in legs}
    return len(axes) > len({name for name, _ in axes})
