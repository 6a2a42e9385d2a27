"""Actions on vector and tensor fields (..., components, H, W): components turn with the grid."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.symmetry.actions.action import dihedral

# components are (along columns, along rows) as image indices grow: x to the right, y down
_TURN = ((0.0, 1.0), (-1.0, 0.0))  # one quarter turn counterclockwise
_MIRROR = ((-1.0, 0.0), (0.0, 1.0))  # left to right


@dataclass(frozen=True)
class Field:
    """A tensor field on a square grid under quarter turns and mirrors.

    Rank 1 has two components (right, down) in dimension -3, rank 2 four; more fields lie behind
    each other. Elements are those of Cyclic(4), Flip or Dihedral(4).

    Args:
        rank: 0 scalar field, 1 vectors, 2 tensors.
        pseudo: True for what changes sign under mirrors, such as a vorticity.
        up: True where the second component points up, as in most flow solvers, and not down, as
            image rows are counted.

    Raises:
        ValueError: channels that are no multiple of 2^rank, an image that is not square.

    Example:
        >>> u = torch.zeros(2, 2, 2)
        >>> u[0] = 1.0  # a wind to the right
        >>> vector_field(1, u)[:, 0, 0]  # turned counterclockwise it blows up
        tensor([ 0., -1.])
    """

    rank: int = 1
    pseudo: bool = False
    up: bool = False

    def __call__(self, g: Any, x: Tensor) -> Tensor:
        turns, flipped = _parts(g)
        moved = dihedral((turns, flipped), x)
        if self.pseudo and flipped:
            moved = -moved
        if self.rank == 0:
            return moved
        width = 2**self.rank
        if x.dim() < 3 or x.shape[-3] % width:
            raise ValueError(
                f"a field of rank {self.rank} has a multiple of {width} channels in dimension -3, "
                f"got shape {tuple(x.shape)}; use dihedral for scalar fields"
            )
        m = _components(turns, flipped, self.rank, self.up).to(moved)
        parts = moved.reshape(*moved.shape[:-3], -1, width, *moved.shape[-2:])
        return torch.einsum("ij,...jhw->...ihw", m, parts).flatten(-4, -3)


scalar_field = Field(0)
pseudo_scalar_field = Field(0, pseudo=True)
vector_field = Field(1)
tensor_field = Field(2)


def _parts(g: Any) -> tuple[int, bool]:
    """(k, flipped) of an element of Cyclic(4), Flip or Dihedral(4)."""
    if isinstance(g, bool):
        return 0, g
    return (g, False) if isinstance(g, int) else g


def y_up(action: Any) -> Any:
    """The same action on components whose y axis points the other way; None if it has none.

    Example:
        >>> y_up(vector_field), y_up(scalar_field)
        (Field(rank=1, pseudo=False, up=True), None)
    """
    return replace(action, up=not action.up) if isinstance(action, Field) and action.rank else None


def _components(turns: int, flipped: bool, rank: int, up: bool) -> Tensor:
    turns = -turns if up else turns
    m = torch.linalg.matrix_power(torch.tensor(_TURN, dtype=torch.float64), turns % 4)
    if flipped:
        m = m @ torch.tensor(_MIRROR, dtype=torch.float64)
    return m if rank == 1 else torch.kron(m, m)
