"""A bundle: parameters that are gathered together, in one exchange, and cut up again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eqtoolbox.world.placement import SHARD

if TYPE_CHECKING:
    from eqtoolbox.world.mesh import Mesh

Kind = tuple[torch.dtype, torch.device]


@dataclass(frozen=True, eq=False, kw_only=True)
class Bundle:
    """What one block of a model holds, as training gathers it.

    G makes whole tensors of pieces; its adjoint sums whole tensors over the ranks that have a share
    of the batch each, and keeps the pieces. Along a model axis all ranks find the same: there is
    nothing to sum, and a piece is a slice.
    """

    world: "Mesh"
    names: tuple[str, ...]
    dtype: torch.dtype | None = None  # of whole tensors; None: of their pieces
    device: torch.device | None = None  # likewise

    @property
    def entries(self) -> int:
        """Of the whole tensors."""
        return sum(self.world.layout[n].whole.numel() for n in self.names)

    def gathered(self, held: Sequence[Tensor]) -> list[Tensor]:
        """Whole tensors, of the pieces that this rank holds."""
        found = [self._cast(t) for t in held]
        for axis, chosen in self._cut(found):
            flat = _filled([found[k] for k in chosen], self._most(chosen))
            rows = self.world.collected(flat, axis)
            parts = [self._parted(row, chosen, rank) for rank, row in enumerate(rows)]
            for k, there in zip(chosen, zip(*parts, strict=True), strict=True):
                found[k] = torch.cat(there, self._dim(k))
        return [t.view_as(t) if t is h else t for t, h in zip(found, held, strict=True)]

    def scattered(self, whole: Sequence[Tensor], kinds: Sequence[Kind]) -> list[Tensor]:
        """Pieces of the sums of whole tensors that each rank found, of these kinds."""
        wide = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in whole]
        found: dict[int, Tensor] = {}
        for axis, chosen in self._cut(wide):
            if axis == SHARD:
                ranks = range(len(self.world.pieces(self.names[chosen[0]])))
                most = self._most(chosen)
                rows = [_filled([self._slice(k, wide[k], r) for k in chosen], most) for r in ranks]
                here = self.world.axes.shard.index(self.world.here)
                mine = self._parted(self.world.shared(torch.stack(rows)), chosen, here)
                found |= dict(zip(chosen, mine, strict=True))
        rest = [k for k in range(len(wide)) if k not in found]
        found |= dict(zip(rest, self.world.summed([wide[k] for k in rest]), strict=True))
        for k in rest:
            if self.names[k] in self.world.cut:
                found[k] = self._slice(k, found[k], self.world.axes.model.index(self.world.here))
        return [found[k].to(there, dtype, copy=True) for k, (dtype, there) in enumerate(kinds)]

    def _cast(self, t: Tensor) -> Tensor:
        return t.to(self.device or t.device, self.dtype or t.dtype)

    def _cut(self, tensors: Sequence[Tensor]) -> Iterator[tuple[str, list[int]]]:
        """Those that are cut, by axis and type."""
        rows: dict[tuple[str, torch.dtype], list[int]] = {}
        for k, name in enumerate(self.names):
            if name in self.world.cut:
                rows.setdefault((self.world.cut[name], tensors[k].dtype), []).append(k)
        return ((axis, chosen) for (axis, _), chosen in rows.items())

    def _most(self, chosen: Sequence[int]) -> int:
        """Entries that a rank holds of these at most: as many as each sends."""
        held = zip(*(self.world.pieces(self.names[k]) for k in chosen), strict=True)
        counts: list[int] = [sum(piece.numel for piece in rank) for rank in held]
        return max(counts)

    def _parted(self, row: Tensor, chosen: Sequence[int], rank: int) -> list[Tensor]:
        """The pieces of one rank, out of what it sent."""
        pieces = [self.world.pieces(self.names[k])[rank] for k in chosen]
        sizes = [piece.numel for piece in pieces]
        parts = row[: sum(sizes)].split_with_sizes(sizes)
        return [part.view(piece.shape) for part, piece in zip(parts, pieces, strict=True)]

    def _slice(self, k: int, whole: Tensor, rank: int) -> Tensor:
        piece = self.world.pieces(self.names[k])[rank]
        return whole.narrow(self._dim(k), piece.start, piece.stop - piece.start)

    def _dim(self, k: int) -> int:
        return self.world.layout[self.names[k]].dim or 0


def _filled(tensors: Sequence[Tensor], count: int) -> Tensor:
    """Tensors laid out flat, and zeros up to so many entries."""
    flat = torch.cat([t.reshape(-1) for t in tensors])
    return torch.nn.functional.pad(flat, (0, count - flat.numel()))
