"""Layout: which stretch of every parameter this process holds."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Piece:
    """What one process holds of one parameter: all of it, or a stretch of one axis.

    Example:
        >>> Piece(torch.Size([5, 3]), 0, 3, 5).shape
        torch.Size([2, 3])
    """

    whole: torch.Size  # shape of the parameter
    dim: int | None  # axis that is cut; None: held whole
    start: int  # first index of the stretch along it
    stop: int  # one past its last

    @property
    def shape(self) -> torch.Size:
        """Of what is held."""
        if self.dim is None:
            return self.whole
        sizes = [*self.whole]
        sizes[self.dim] = self.stop - self.start
        return torch.Size(sizes)

    @property
    def numel(self) -> int:
        """Entries of what is held."""
        return self.shape.numel()


Layout = Mapping[str, Piece]


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: a DTensor's shard, detached; others as they are."""
    given = _placed(tensor)
    return tensor if given is None else given.to_local().detach()


def layout_of(named: Mapping[str, Tensor]) -> dict[str, Piece]:
    """The piece of every tensor that this process holds; of plain tensors the whole.

    Args:
        named: parameters by name, DTensors or plain.

    Raises:
        TypeError: a DTensor is placed in a way of which no axis has one stretch here.
    """
    return {name: _piece(name, tensor) for name, tensor in named.items()}


def stretch_of(length: int, rank: int, ranks: int) -> tuple[int, int]:
    """Which stretch of an axis is a rank's: chunks of equal length, the last ones shorter or empty.

    Example:
        >>> [stretch_of(5, rank, 4) for rank in range(4)]
        [(0, 2), (2, 4), (4, 5), (5, 5)]
    """
    step = -(-length // ranks)
    return min(rank * step, length), min((rank + 1) * step, length)


def _piece(name: str, tensor: Tensor) -> Piece:
    given = _placed(tensor)
    if given is None:
        return Piece(tensor.shape, None, 0, 0)
    cut: list[tuple[int, int]] = []  # axes of the mesh, and of the tensor
    placements: tuple[Any, ...] = given.placements
    for axis, placement in enumerate(placements):
        if type(placement).__name__ not in ("Shard", "Replicate"):
            raise TypeError(_refused(name, placement))
        if type(placement).__name__ == "Shard":
            cut.append((axis, placement.dim % tensor.dim()))
    if len(cut) > 1:
        raise TypeError(
            f"{name} is cut along {len(cut)} axes of its mesh, {given.placements}; what is "
            "measured from shards takes one: shard over one axis and replicate over the others"
        )
    if not cut:
        return Piece(tensor.shape, None, 0, 0)
    ((axis, dim),) = cut
    mesh = given.device_mesh
    start, stop = stretch_of(tensor.shape[dim], mesh.get_local_rank(axis), mesh.size(axis))
    made = Piece(tensor.shape, dim, start, stop)
    if local(tensor).shape != made.shape:
        raise TypeError(
            f"{name} was expected to have {tuple(made.shape)} of {tuple(made.whole)} in this "
            f"process, got {tuple(local(tensor).shape)}: shards are not cut as torch.chunk does"
        )
    return made


def _refused(name: str, placement: Any) -> str:
    return (
        f"{name} is placed as {placement}, of which no axis has one stretch here; what is "
        "measured from shards takes Shard and Replicate (FSDP2 and HSDP), and no tensor parallelism"
    )


def _placed(tensor: Tensor) -> "DTensor | None":
    loaded = sys.modules.get("torch.distributed.tensor")  # a DTensor comes from nowhere else
    return tensor if loaded is not None and isinstance(tensor, loaded.DTensor) else None
