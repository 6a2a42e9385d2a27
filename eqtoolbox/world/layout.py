"""Layout: which stretch of every parameter this process holds, read off DTensors."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from eqtoolbox.world.shards import Piece, stretch_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


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
