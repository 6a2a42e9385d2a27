"""Shards: what this process holds of a model, and how it adds up and exchanges with the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


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


def stretch_of(length: int, rank: int, ranks: int) -> tuple[int, int]:
    """Which stretch of an axis is a rank's: chunks of equal length, the last ones shorter or empty.

    Example:
        >>> [stretch_of(5, rank, 4) for rank in range(4)]
        [(0, 2), (2, 4), (4, 5), (5, 5)]
    """
    step = -(-length // ranks)
    return min(rank * step, length), min((rank + 1) * step, length)


def _alone(x: Tensor) -> Tensor:
    return x


def _with_itself(
    into: Tensor, given: Tensor, arriving: Sequence[int], leaving: Sequence[int]
) -> None:
    into.copy_(given)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shards:
    """The processes that together hold one model: of every parameter its pieces, or all of it.

    `total` and `exchange` are collectives: all of these processes call them in the same order.

    Example:
        >>> ALONE.rank, ALONE.ranks, float(ALONE.total(torch.ones(())))
        (0, 1, 1.0)
    """

    layout: Layout = field(default_factory=dict)  # what is not in it is held whole
    rank: int = 0  # among those that hold the shards
    ranks: int = 1
    # the sum over all of them of a small tensor, identical on each; it may be written over
    total: Callable[[Tensor], Tensor] = _alone
    # (into, given, arriving, leaving): so many numbers from, and to, each; one after the other
    exchange: Callable[[Tensor, Tensor, Sequence[int], Sequence[int]], None] = _with_itself

    def piece(self, name: str, tensor: Tensor) -> Piece:
        """What of a parameter the tensor is."""
        return self.layout.get(name) or Piece(tensor.shape, None, 0, 0)

    def counts(self, name: str) -> bool:
        """Whether sums take what is held here: what all hold whole is the first one's to add."""
        known = self.layout.get(name)
        return self.rank == 0 or (known is not None and known.dim is not None)

    def chunk(self, length: int) -> int:
        """How much of an axis of this length each holds, the last ones less."""
        return -(-length // self.ranks)

    def squares(self, norms: Tensor, names: Sequence[str]) -> Tensor:
        """Squares of the norms of what is held here, to be added up: (tensors,)."""
        squares = norms.square()
        if self.rank == 0:  # it counts everything: nothing is copied to the device
            return squares
        return squares * norms.new_tensor([float(self.counts(name)) for name in names])

    def norms(self, norms: Tensor, names: Sequence[str]) -> Tensor:
        """Norms of whole parameters, by those of what is held here: (tensors,)."""
        return self.total(self.squares(norms, names)).sqrt()

    def added(self, numbers: Tensor, beside: Tensor) -> Tensor:
        """A few numbers on the host added up over all, by way of the device of what is beside."""
        return self.total(numbers.to(beside.device)).cpu() if self.ranks > 1 else numbers

    def whole(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Small tensors as a whole, by one sum: each adds its own stretch, and zero elsewhere."""
        found, cut = dict(held), [n for n, t in held.items() if self.piece(n, t).dim is not None]
        if not cut:
            return found
        pieces = [self.piece(name, held[name]) for name in cut]
        pairs = zip(cut, pieces, strict=True)
        flat = torch.cat([_embedded(held[name], piece).reshape(-1) for name, piece in pairs])
        parts = torch.split(self.total(flat), [p.whole.numel() for p in pieces])
        found |= {n: x.view(p.whole) for n, x, p in zip(cut, parts, pieces, strict=True)}
        return found


ALONE = Shards()  # one process, which holds everything


def regroup(x: Tensor, piece: Piece, dim: int, shards: Shards) -> tuple[Tensor, Piece]:
    """The same tensor cut along another axis, by one exchange: no more is held than a shard.

    Args:
        x: the piece that is held here.
        piece: which one that is.
        dim: axis along which it is to be cut instead.
        shards: who holds the others.

    Returns:
        The piece held here then, and which one that is.

    Example:
        >>> made, piece = regroup(torch.ones(4, 6), Piece(torch.Size([4, 6]), 0, 0, 4), 1, ALONE)
        >>> piece
        Piece(whole=torch.Size([4, 6]), dim=1, start=0, stop=6)
    """
    assert piece.dim is not None, "what is held whole is not exchanged"
    length, ranks = piece.whole[dim], shards.ranks
    parts = [x[_along(dim, *stretch_of(length, k, ranks))].reshape(-1) for k in range(ranks)]
    start, stop = stretch_of(length, shards.rank, ranks)
    shapes = []
    for k in range(ranks):
        sizes = [*piece.whole]
        first, last = stretch_of(sizes[piece.dim], k, ranks)
        sizes[piece.dim], sizes[dim] = last - first, stop - start
        shapes.append(torch.Size(sizes))
    arriving, leaving = [s.numel() for s in shapes], [len(part) for part in parts]
    given = torch.cat(parts)
    del parts
    into = given.new_empty(sum(arriving))
    shards.exchange(into, given, arriving, leaving)
    pairs = zip(torch.split(into, arriving), shapes, strict=True)
    found = [own.view(shape) for own, shape in pairs]
    return torch.cat(found, piece.dim), Piece(piece.whole, dim, start, stop)


def _along(dim: int, start: int, stop: int) -> tuple[slice, ...]:
    return (*[slice(None)] * dim, slice(start, stop))


def embedded(held: Tensor, piece: Piece, shards: Shards) -> Tensor:
    """A small tensor as a whole, from everyone's piece."""
    return shards.total(_embedded(held, piece))


def _embedded(held: Tensor, piece: Piece) -> Tensor:
    assert piece.dim is not None, "what is held whole is all there"
    made = held.new_zeros(piece.whole)
    made[_along(piece.dim, piece.start, piece.stop)] = held
    return made
