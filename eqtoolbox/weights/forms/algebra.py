"""Algebras: Lie algebras of matrices by the entries of their generators."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.weights.forms.form import Balance


@dataclass(frozen=True, eq=False)
class AlgebraEntries:
    """Several d x d matrices: number of[k] has weight[k] at (row[k], column[k])."""

    count: int
    of: Tensor
    row: Tensor
    column: Tensor
    weight: Tensor  # float64


@dataclass(frozen=True, kw_only=True)
class Algebra:
    """Generators with one entry a row and column at most, and the symmetric ones among them.

    What is stated of the size d: `generators`, and `symmetric`, half of each of an orthonormal
    basis of the symmetric elements, by their upper triangles, as many as `charges`.
    """

    generators: Callable[[int], AlgebraEntries]
    symmetric: Callable[[int], AlgebraEntries]
    charges: Callable[[int], int]
    contains: frozenset[str] = frozenset()  # discrete families inside the group
    balance: Balance | None = None  # of forms with separate sides
    large: bool = False  # has so many charges that a few random elements may stand for them
    blocks_first: bool = False  # coefficients: one generator of all blocks, then the next

    def matrices(self, coefficients: Tensor, blocks: int, size: int) -> Tensor:
        """A of every block: (blocks, d, d)."""
        entries, device = self.generators(size), coefficients.device
        table = coefficients.reshape(-1, blocks).mT if self.blocks_first else coefficients
        own = table.reshape(blocks, entries.count)[:, entries.of.to(device)]
        where = (entries.row * size + entries.column).to(device)
        zero = coefficients.new_zeros(blocks, size * size)
        parts = own * entries.weight.to(coefficients)
        return zero.index_add(1, where, parts).reshape(blocks, size, size)


def _general(size: int) -> AlgebraEntries:
    """E_ij."""
    i, j = torch.arange(size).repeat_interleave(size), torch.arange(size).repeat(size)
    return AlgebraEntries(
        size**2, torch.arange(size**2), i, j, torch.ones(size**2, dtype=torch.float64)
    )


def _symmetric(size: int) -> AlgebraEntries:
    """E_ii and (E_ij + E_ji) / sqrt 2, half of each."""
    i, j = torch.triu_indices(size, size)
    weights = torch.full((len(i),), 0.5**0.5, dtype=torch.float64).masked_fill(i == j, 0.5)
    return AlgebraEntries(len(i), torch.arange(len(i)), i, j, weights)


def _antisymmetric(size: int) -> AlgebraEntries:
    """E_ij - E_ji."""
    i, j = torch.triu_indices(size, size, 1)
    one = torch.ones(len(i), dtype=torch.float64)
    of = torch.arange(len(i)).repeat(2)
    return AlgebraEntries(len(i), of, torch.cat([i, j]), torch.cat([j, i]), torch.cat([one, -one]))


def _complex(size: int) -> AlgebraEntries:
    """1 and J = [[0, -1], [1, 0]]."""
    of, i, j = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1, 0])
    return AlgebraEntries(2, of, i, j, torch.tensor([1.0, 1.0, -1.0, 1.0], dtype=torch.float64))


def _identity(size: int) -> AlgebraEntries:
    """The identity, half of it."""
    every = torch.arange(size)
    return AlgebraEntries(
        1, torch.zeros_like(every), every, every, torch.full((size,), 0.5).double()
    )


def _nothing(size: int) -> AlgebraEntries:
    none = torch.zeros(0, dtype=torch.long)
    return AlgebraEntries(0, none, none, none, torch.zeros(0, dtype=torch.float64))


def _pairs(size: int) -> int:
    return size * (size + 1) // 2


def _one(size: int) -> int:
    return 1


def _none(size: int) -> int:
    return 0


GENERAL = Algebra(
    generators=_general,
    symmetric=_symmetric,
    charges=_pairs,
    contains=frozenset({"permutation", "sign_flip"}),
    balance="equal grams",
    large=True,
)
COMPLEX = Algebra(  # of 2 x 2 matrices
    generators=_complex,
    symmetric=_identity,
    charges=_one,
    contains=frozenset({"sign_flip"}),  # half a turn
    balance="equal sides",
    blocks_first=True,
)
ROTATIONS = Algebra(generators=_antisymmetric, symmetric=_nothing, charges=_none)
