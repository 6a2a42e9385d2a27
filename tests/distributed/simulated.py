"""Ranks in threads: pieces of whole tensors, and collectives that every rank has to join."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from eqtoolbox.world.shards import Piece, Shards, stretch_of

T = TypeVar("T")
Params = Mapping[str, Tensor]
Axes = Callable[[str, Tensor], int | None]  # along which a parameter is cut; None: held whole


def first_axis(name: str, tensor: Tensor) -> int | None:
    """As FSDP2 cuts by itself."""
    return 0 if tensor.dim() else None


def last_axis(name: str, tensor: Tensor) -> int | None:
    """As it may be told to."""
    return tensor.dim() - 1 if tensor.dim() else None


def mixed_axes(name: str, tensor: Tensor) -> int | None:
    """Some held whole, some cut along the first axis and some along the last."""
    which = sum(map(ord, name)) % 3
    return None if which == 0 else (first_axis, last_axis)[which - 1](name, tensor)


@dataclass(kw_only=True)
class Simulated:
    """So many ranks in threads of this process; what they tell each other is counted."""

    ranks: int
    totals: list[int] = field(default_factory=list)  # numbers in every sum
    exchanged: list[int] = field(default_factory=list)  # numbers that any rank was sent at once
    _slots: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._slots, self._barrier = [None] * self.ranks, threading.Barrier(self.ranks, timeout=20)

    def run(self, part: Callable[[Shards], T], layouts: Sequence[Mapping[str, Piece]]) -> list[T]:
        """What every rank finds."""

        def of(rank: int) -> T:
            try:
                return part(self._shards(rank, layouts[rank]))
            except BaseException:
                self._barrier.abort()  # the others wait for nobody
                raise

        with ThreadPoolExecutor(self.ranks) as pool:
            every = [pool.submit(of, rank) for rank in range(self.ranks)]
        failed = [e for f in every if (e := f.exception()) is not None]
        for error in sorted(failed, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            raise error  # not what others say who wait for it
        return [f.result() for f in every]

    def _shards(self, rank: int, layout: Mapping[str, Piece]) -> Shards:
        def shared(mine: Any) -> list[Any]:
            self._slots[rank] = mine
            self._barrier.wait()
            every = list(self._slots)
            self._barrier.wait()
            return every

        def total(x: Tensor) -> Tensor:
            every = shared(x.clone())
            assert len({t.shape for t in every}) == 1, "ranks are at different sums"
            if rank == 0:
                self.totals.append(x.numel())
            return torch.stack(every).sum(0)

        def exchange(
            into: Tensor, given: Tensor, arriving: Sequence[int], leaving: Sequence[int]
        ) -> None:
            sent = [parts[rank] for parts in shared(given.split(list(leaving)))]
            assert [len(x) for x in sent] == list(arriving), "others send something else"
            into.copy_(torch.cat(sent))
            self.exchanged.append(len(into))

        return Shards(layout=layout, rank=rank, ranks=self.ranks, total=total, exchange=exchange)


def layouts(params: Params, ranks: int, axes: Axes = first_axis) -> list[dict[str, Piece]]:
    """The pieces of every rank."""
    found: list[dict[str, Piece]] = []
    for rank in range(ranks):
        own = {}
        for name, tensor in params.items():
            dim = axes(name, tensor)
            stretch = (0, 0) if dim is None else stretch_of(tensor.shape[dim], rank, ranks)
            own[name] = Piece(tensor.shape, dim, *stretch)
        found.append(own)
    return found


def held(params: Params, layout: Mapping[str, Piece]) -> dict[str, Tensor]:
    """What one rank has of these tensors."""
    found = {}
    for name, tensor in params.items():
        piece = layout[name]
        whole = piece.dim is None
        own = tensor if whole else tensor.narrow(piece.dim, piece.start, piece.stop - piece.start)
        found[name] = own.clone()
    return found
