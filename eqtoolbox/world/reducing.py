"""Reducing: inner products of vectors of which this process holds pieces, as those of the whole.

Vectors are dicts of tensors by the names of parameters. Inside the scope of a mesh a tensor that
has the shape of the piece of its name is a piece: sums over its entries go on over the ranks along
which it is cut, and over no others. Everything else is what it is in one process.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from eqtoolbox.world.mesh import Mesh
from eqtoolbox.world.shards import Piece
from eqtoolbox.world.world import World


class _Here(threading.local):
    mesh: Mesh | None = None


_here = _Here()


@contextmanager
def reducing(world: World) -> Iterator[None]:
    """Scope in which vectors of this thread are pieces of those of the world's model.

    All ranks do the same in it. A world in which each process holds everything changes nothing.
    """
    before, _here.mesh = _here.mesh, world if isinstance(world, Mesh) else None
    try:
        yield
    finally:
        _here.mesh = before


def axis_of(name: str, x: Tensor) -> str:
    """The axis along which a tensor of a vector is a piece; empty where it is whole."""
    return "" if _here.mesh is None else _here.mesh.axis_of(name, x.shape)


def piece_of(name: str, x: Tensor) -> Piece | None:
    """Which piece a tensor of a vector is; None where it is whole."""
    return _here.mesh.layout[name] if _here.mesh is not None and axis_of(name, x) else None


def entries(like: Mapping[str, Tensor]) -> int:
    """Number of entries of the whole vector."""
    pieces = ((piece_of(name, x), x) for name, x in like.items())
    return sum(x.numel() if piece is None else piece.whole.numel() for piece, x in pieces)


def reduced(axis: str, number: float) -> float:
    """A sum over the pieces that are here, as that over all along their axis."""
    return totalled(axis, torch.tensor([number], dtype=torch.float64)).item() if axis else number


def agreed(like: Mapping[str, Tensor], here: bool) -> bool:
    """Whether something holds on all ranks that have pieces of such a vector."""
    axes = sorted({axis_of(name, x) for name, x in like.items()} - {""})
    others = [reduced(axis, float(not here)) == 0 for axis in axes]
    return here and all(others)


def totalled(axis: str, numbers: Tensor) -> Tensor:
    """Sums over the pieces that are here, as those over all along their axis.

    Args:
        axis: along which what was summed is cut; empty for what is whole.
        numbers: on the host, float64.

    Raises:
        RuntimeError: they are of pieces, outside of the scope.
    """
    if not axis:
        return numbers
    if _here.mesh is None:
        raise RuntimeError(
            "expected vectors of shards to be used where they were made, inside of `reducing`, got "
            "them outside, where an inner product would be that of one shard alone"
        )
    return _here.mesh.totalled(numbers, axis)
