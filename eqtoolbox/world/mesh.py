"""A mesh: ranks of which some hold pieces of the parameters, along axes that differ in meaning."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from eqtoolbox.expect.deadline import uncounted
from eqtoolbox.world.control import Control
from eqtoolbox.world.placement import MODEL, SHARD, Placement
from eqtoolbox.world.ranks import Ranks
from eqtoolbox.world.shards import Piece, Shards, stretch_of
from eqtoolbox.world.swap import swap


class Mesh(Ranks):
    """Processes that hold one model in pieces.

    Args:
        control: between all of them.
        placement: of the model on them.
        backend: of the groups for data.
    """

    def __init__(
        self,
        control: Control,
        placement: Placement,
        backend: str = "gloo",
    ) -> None:
        super().__init__(control, backend)
        axes = placement.axes
        self.size, self.axes, self.blocks = len(axes.data), axes, placement.blocks
        self.here = control.ranks[control.rank]  # among all processes
        self.layout, self.cut = dict(placement.layout), dict(placement.cut)

        def group(ranks: tuple[int, ...], backend: str) -> Any:
            if ranks == control.ranks and backend == self._backend:
                return self._data
            return control.group(backend, ranks)

        self._backend = backend
        self._along = {SHARD: axes.shard, MODEL: axes.model}
        self._groups = {axis: group(ranks, backend) for axis, ranks in self._along.items()}
        self._copies = group(axes.replicate, backend)
        self._spoken = {  # for numbers that are on the host anyway
            axis: self._groups[axis] if backend == "gloo" else group(ranks, "gloo")
            for axis, ranks in self._along.items()
        }

    @property
    def several(self) -> bool:
        return True  # one process that was given to FSDP2, too

    @property
    def sharded(self) -> bool:
        return True

    @property
    def shards(self) -> Shards:
        axis = MODEL if len(self._along[MODEL]) > 1 else SHARD
        ranks, group = self._along[axis], self._groups[axis]

        def total(x: Tensor) -> Tensor:
            self._by_all()
            self._ready(f"total along {axis}", x.numel())
            with uncounted():
                dist.all_reduce(x, group=group)
            return x

        def exchange(
            into: Tensor, given: Tensor, arriving: Sequence[int], leaving: Sequence[int]
        ) -> None:
            self._by_all()
            self._ready(f"exchange along {axis}")
            with uncounted():
                swap(into, given, arriving, leaving, group)

        return Shards(
            layout=self.layout,
            rank=ranks.index(self.here),
            ranks=len(ranks),
            total=total,
            exchange=exchange,
        )

    def axis_of(self, name: str, shape: torch.Size) -> str:
        """The axis along which a tensor of this name and shape is a piece; empty for none."""
        piece = self.layout.get(name)
        return self.cut.get(name, "") if piece is not None and piece.shape == shape else ""

    def pieces(self, name: str) -> list[Piece]:
        """What each rank along its axis holds of a parameter that is cut."""
        own, ranks = self.layout[name], len(self._along[self.cut[name]])
        assert own.dim is not None
        length = own.whole[own.dim]
        return [Piece(own.whole, own.dim, *stretch_of(length, r, ranks)) for r in range(ranks)]

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sum of each tensor over all shares of the batch."""
        if self.size == 1:
            return list(tensors)
        return super().summed(tensors)

    def collected(self, flat: Tensor, axis: str) -> Tensor:
        """What all ranks along an axis hold, (ranks, count), as many numbers each."""
        self._by_all()
        made = flat.new_empty(len(self._along[axis]), flat.numel())
        self._ready(f"gather of {flat.dtype} along {axis}", flat.numel())
        with uncounted():
            gather = _named("all_gather_single", "all_gather_into_tensor")
            gather(made.view(-1), flat.contiguous(), group=self._groups[axis])
        return made

    def shared(self, rows: Tensor) -> Tensor:
        """The sum over all shares of the batch of this rank's row; one for each along `shard`."""
        self._by_all()
        made = rows.new_empty(rows.shape[1])
        self._ready(f"scatter of {rows.dtype}", rows.numel())
        with uncounted():
            scatter = _named("reduce_scatter_single", "reduce_scatter_tensor")
            scatter(made, rows.contiguous().view(-1), group=self._groups[SHARD])
            if len(self.axes.replicate) > 1:
                dist.all_reduce(made, group=self._copies)
        return made

    def totalled(self, numbers: Tensor, axis: str) -> Tensor:
        """The sum of numbers on the host over the ranks along an axis."""
        self._by_all()
        self._ready(f"totals along {axis}", numbers.numel())
        made = numbers.clone()
        with uncounted():
            dist.all_reduce(made, group=self._spoken[axis])
        return made

    def _by_all(self) -> None:
        if not self.inside:
            raise RuntimeError(
                "a model of which every process holds a part is evaluated by all of them together, "
                "inside of `together`, but this was asked of one rank alone"
            )


def _named(name: str, before: str) -> Any:
    """A function of torch.distributed, which had another name before torch 2.13."""
    return getattr(dist, name, None) or getattr(dist, before)
