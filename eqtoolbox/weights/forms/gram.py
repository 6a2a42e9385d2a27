"""Gram forms: axes that matrices of an algebra mix, with charges from rows paired with rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.weights.forms.algebra import Algebra, AlgebraEntries
from eqtoolbox.weights.forms.form import Form, Moments, Owners, Spread, each, summed
from eqtoolbox.weights.forms.stack import Pair, Parameters, Points, Stack, StackLayout

SMALL = 16  # dimensions up to which no sketch is made
Part = tuple[int, int, int, tuple[int, ...]]  # stack, axis, repetition, positions along the axis


@dataclass(frozen=True, eq=False)
class MatrixLeg:
    """One tensor's part: the axis entries that block b's matrix mixes, once per copy."""

    name: str
    axis: int
    positions: Tensor  # (blocks, copies, size), indices along the axis
    sign: int  # +1: multiplied by e^A, -1: by e^-A^T

    def gather(self, tensor: Tensor) -> Tensor:
        """(blocks, copies, size, rest)."""
        rows = tensor.movedim(self.axis, 0)
        rows = rows.reshape(rows.shape[0], -1)
        return rows[self.positions.to(rows.device)]

    def scatter(self, blocks: Tensor, into: Tensor) -> Tensor:
        """`into` with its gathered entries replaced."""
        moved = into.movedim(self.axis, 0)
        rows = moved.reshape(moved.shape[0], -1).clone()
        rows[self.positions.to(rows.device).reshape(-1)] = blocks.reshape(-1, rows.shape[1])
        return rows.reshape(moved.shape).movedim(0, self.axis)

    def mixed(self, tensor: Tensor, plus: Tensor, minus: Tensor, into: Tensor) -> Tensor:
        """`into` with the entries that the matrices of its sign make of the tensor's."""
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
        return cls(
            legs=legs,
            algebra=algebra,
            dimension=dimension,
            contains=algebra.contains,
            large=algebra.large and legs[0].positions.shape[2] > SMALL,
            balance=_CONJUGATES if _conjugates(legs) else algebra.balance,
        )

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

    def matrices(self, coefficients: Tensor) -> Tensor:
        """A of every block, (blocks, d, d)."""
        return self.algebra.matrices(coefficients, self.blocks, self.size)

    def flow(self, coefficients: Tensor) -> Callable[[Parameters], dict[str, Tensor]]:
        a = self.matrices(coefficients)
        plus, minus = torch.matrix_exp(a), torch.matrix_exp(-a.mT)

        def moved(tensors: Parameters) -> dict[str, Tensor]:
            made: dict[str, Tensor] = {}
            for leg in self.legs:
                if leg.name in tensors:
                    old = made.get(leg.name, tensors[leg.name])
                    made[leg.name] = leg.mixed(old, plus, minus, old)
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

    A leg here is one block of one tensor; all blocks of all legs of all forms lie in one
    tensor, which is summed into one matrix per block with the legs' signs.
    """

    def __init__(self, forms: Sequence[Gram], layout: StackLayout) -> None:
        self.forms: Sequence[Gram] = forms
        self.size = forms[0].size
        views: dict[Part, MatrixView] = {}
        rows: dict[Part, dict[int, tuple[Tensor, int]]] = {}
        start = 0
        for form in forms:
            for leg in form.legs:
                number, index = layout.place[leg.name]
                positions = tuple(leg.positions.reshape(-1).tolist())
                part, again = (number, leg.axis, 0, positions), 0
                while index in rows.get(part, {}):  # the same part of a tensor once more
                    again += 1
                    part = (number, leg.axis, again, positions)
                views.setdefault(part, MatrixView(leg))
                blocks = torch.arange(start, start + form.blocks)
                rows.setdefault(part, {})[index] = blocks, leg.sign
            start += form.blocks
        views = {part: views[part] for part in sorted(views)}
        self._views = [(part[0], view) for part, view in views.items()]
        self.blocks = start
        where, signs = [], []
        owners: list[tuple[str, int]] = []
        for part in views:
            legs = rows[part]
            like = next(iter(legs.values()))[0]
            for index, name in enumerate(layout.groups[part[0]][1]):
                block, sign = legs.get(index, (torch.zeros_like(like), 0))
                where.append(block)
                signs.append(torch.full((len(like),), float(sign), dtype=torch.float64))
                owners.append((name, len(like)))
        self._owners: Owners = owners
        self._block, self._sign = torch.cat(where), torch.cat(signs)
        algebra = forms[0].algebra
        self._generators = self._spread(algebra.generators(self.size), algebra.blocks_first)
        self._upper = self._spread(algebra.symmetric(self.size), False)

    def _spread(self, entries: AlgebraEntries, blocks_first: bool) -> Spread:
        """From the matrices of all blocks to what the entries are of, form by form."""
        d, count = self.size, entries.count
        first = torch.tensor([0, *accumulate(f.blocks for f in self.forms)])
        blocks = torch.tensor([f.blocks for f in self.forms])
        many = torch.repeat_interleave(blocks, blocks)[:, None]
        start = torch.repeat_interleave(first[:-1], blocks)[:, None]
        every = torch.arange(self.blocks)[:, None]
        inner = every - start  # which block of its own form
        own = entries.of * many + inner if blocks_first else inner * count + entries.of
        rows = every * d * d + entries.row * d + entries.column
        rates = entries.weight.expand(self.blocks, -1)
        into = (start * count + own).reshape(-1)
        return Spread(rows.reshape(-1), into, rates.reshape(-1), self.blocks * count)

    def rows(self, stack: Stack, points: Points, pairs: Sequence[Pair]) -> list[Tensor]:
        found = []
        for number, view in self._views:
            if number == stack.number:
                given = [view.of(whole) for whole in stack.whole]
                found.append(torch.stack([torch.bmm(given[a], given[b].mT) for a, b in pairs]))
        return found

    @property
    def units(self) -> Tensor:
        """The blocks: entries of a matrix depend on the basis of the axis."""
        return torch.arange(self.blocks).repeat_interleave(sum(self.counts) // self.blocks)

    def pair(self, moments: Tensor) -> Tensor:
        total = self._summed(moments, self._block, self.blocks)
        return self._upper.of((total + total.mT).flatten(1))

    def scales(self, moments: Tensor, points: Points) -> Tensor:
        """Of the lengths of the rows of every leg, whatever its sign."""
        roots = moments[0].diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        taken = self._sign.abs().to(roots)[:, None, None]
        total = roots.new_zeros(self.blocks, self.size, self.size)
        outer = taken * roots[:, :, None] * roots[:, None, :]
        total = total.index_add(0, self._block.to(roots.device), outer)
        return self._upper.of(total.reshape(1, -1))[0]

    def slopes(self, moments: Tensor, points: Points, pair: Pair) -> Tensor:
        """A multiplies legs of sign + and -A^T those of sign -; gram_ij pairs row i of a."""
        plus, minus = self._sides(moments[:1])
        return self._generators.of((plus.mT + minus).reshape(1, -1))[0]

    def sizes(self, moments: Tensor, points: Points) -> Tensor:
        """A_ij reads row j of a + leg, row i of a - leg: one entry a row and column of each A."""
        squares = moments[:1].diagonal(dim1=-2, dim2=-1).clamp_min(0)
        plus, minus = (side.abs() for side in self._sides(squares))
        both = (plus[:, None, :] + minus[:, :, None]).reshape(1, -1)
        return self._generators.of(both, magnitude=2)[0].sqrt()

    def decay(self, moments: Tensor, weights: Mapping[str, float]) -> Tensor:
        return self.pair(moments * each(weights, self._owners, moments)[:, None, None])[0]

    def _sides(self, legs: Tensor) -> tuple[Tensor, Tensor]:
        """Signed sums over the legs of sign + and over those of sign -, of every block."""
        count = self.blocks
        where = torch.where(self._sign > 0, self._block, self._block + count)
        both = self._summed(legs, where, 2 * count)[0]
        return both[:count], both[count:]

    def _summed(self, legs: Tensor, where: Tensor, count: int) -> Tensor:
        """Signed sum over the legs that go to each place: (pairs, count, ...)."""
        many, device = len(legs), legs.device
        signed = legs * self._sign.to(device).reshape(-1, *[1] * (legs.dim() - 2))
        places = torch.cat([where.to(device) + k * count for k in range(many)])
        total = legs.new_zeros(many * count, *legs.shape[2:])
        return total.index_add(0, places, signed.flatten(0, 1)).view(many, count, *legs.shape[2:])


class MatrixView:
    """(stacked * blocks, d, everything else) of a stack, without a copy where memory allows."""

    def __init__(self, leg: MatrixLeg) -> None:
        self._axis, self._shape = leg.axis + 1, leg.positions.shape
        self._flat = leg.positions.reshape(-1)
        self._start, length = int(self._flat[0]), len(self._flat)
        stretch = torch.arange(self._start, self._start + length)
        self._side_by_side = torch.equal(self._flat, stretch)

    def of(self, stack: Tensor) -> Tensor:
        """The view of (stacked, *shape)."""
        blocks, copies, size = self._shape
        rows, flat = stack.movedim(self._axis, 1), self._flat
        if self._side_by_side:
            rows = rows.narrow(1, self._start, len(flat))
        else:
            rows = rows[:, flat.to(stack.device)]
        parts = rows.reshape(len(stack), blocks, copies, size, -1)
        if copies > 1:
            parts = parts.movedim(2, 3)
        return parts.reshape(len(stack) * blocks, size, -1)


_CONJUGATES = (
    "acts on both sides of one matrix, W -> T W T^-1: its canonical point has no closed form"
)


def _conjugates(legs: Sequence[MatrixLeg]) -> bool:
    axes = {(leg.name, leg.axis) for leg in legs}
    return len(axes) > len({name for name, _ in axes})
