"""Mapped: vectors after maps of which each process holds a piece: sums over its holders."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eqtoolbox.weights.forms.held import CACHED
from eqtoolbox.weights.forms.maps import Map, Reader
from eqtoolbox.weights.forms.stack import Points
from eqtoolbox.world.shards import Piece


def pulled(points: Points, point: int, reader: Reader, cotangent: Tensor) -> Tensor:
    """M^T cotangent, M the product of a reader's maps at this point."""
    for m in reversed(reader.maps):
        cotangent = _whole(points, point, m, cotangent, back=True)
    return reader.factor * cotangent


def columns(points: Points, readers: Sequence[Reader], width: int) -> Tensor:
    """Squared norms of the columns of the sum of what readers of one bias see: (width,).

    Where all are single matrices that are cut alike, no two processes have parts of one entry.
    """
    first = [r.maps[0] for r in readers]
    cuts = {(m.kind, _piece(points, m).dim) for m in first}
    apart = all(len(r.maps) == 1 for r in readers) and len(cuts) == 1 and None not in cuts.pop()
    longest = max(length for m in first for length in (width, *_piece(points, m).whole))
    step, found = max(1, CACHED // longest), []
    home = points.of(0, [first[0].name])[first[0].name]
    for start in range(0, width, step):
        some = torch.arange(start, min(start + step, width), device=home.device)
        unit = torch.nn.functional.one_hot(some, width).mT.to(home)
        own = torch.stack([_seen(points, r, unit) for r in readers]).sum(0)
        own = own if apart else points.shards.total(own)
        found.append(own.square().sum(0))
    made = torch.cat(found)
    return points.shards.total(made) if apart else made


def _seen(points: Points, reader: Reader, vectors: Tensor) -> Tensor:
    """This process's share of M times these vectors."""
    *before, last = reader.maps
    for m in before:
        vectors = _whole(points, 0, m, vectors)
    whole = _piece(points, last).dim is None or last.kind == "diagonal"
    share = 0.0 if whole and points.shards.rank else reader.factor
    return share * _share(points, 0, last, vectors)


def _whole(points: Points, point: int, m: Map, vectors: Tensor, back: bool = False) -> Tensor:
    """A map, or its transpose, times vectors."""
    found = _share(points, point, m, vectors, back)
    cut = m.kind != "diagonal" and _piece(points, m).dim is not None
    return points.shards.total(found) if cut else found


def _share(points: Points, point: int, m: Map, vectors: Tensor, back: bool = False) -> Tensor:
    """What the piece held here adds to that: zero in rows that others hold."""
    if m.kind == "diagonal":
        weight = points.whole(point, [m.name])[m.name]
        return (weight if vectors.dim() == 1 else weight[:, None]) * vectors.to(weight)
    piece, held = _piece(points, m), points.of(point, [m.name])[m.name]
    over = 0 if (m.kind == "rows") == back else 1  # the axis that is summed over
    matrix, vectors = held if over else held.mT, vectors.to(held)
    here = slice(piece.start, piece.stop)
    if piece.dim is None:
        return matrix @ vectors
    if piece.dim == over:
        return matrix @ vectors[here]
    made = vectors.new_zeros(piece.whole[1 - over], *vectors.shape[1:])
    made[here] = matrix @ vectors
    return made


def _piece(points: Points, m: Map) -> Piece:
    first = points.given[0]
    assert first is not None, "the first point is where everything starts"
    return points.shards.piece(m.name, first[m.name])
