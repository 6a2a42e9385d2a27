"""The pose score: a small network that tells the poses of any input apart, by all its entries."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.symmetry.structure import Tree, tensors

_BINS = 256
_SIDE = 16  # pixels that are left of an image along each of its sides


class PoseScore(nn.Module):
    """Tensors or trees of them, (batch, ...), to one number a sample, whatever their shapes.

    Every entry goes with a sign into one of 256 bins, both by chance and fixed by the seed; up to
    256 entries have a bin for themselves, more share them (a count sketch). A perceptron 256-64-1
    reads the bins. Images are pooled to 16 x 16 first, leaves and bins are brought to unit size,
    and what is not finite is zero. Entries are read by their place: a model that does not mind
    the order of nodes needs a score that does not either.

    Args:
        seed: of the bins and of the initial weights; the global random stream is not drawn from.

    Reference: the count sketch, Charikar et al. 2002.

    Example:
        >>> score = PoseScore()
        >>> score(torch.eye(3)).shape, sum(p.numel() for p in score.parameters())
        (torch.Size([3]), 16513)
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.last = nn.Linear(_BINS, 64), nn.Linear(64, 1)

    def forward(self, x: Tree) -> Tensor:
        """(batch,)"""
        weight = self.first.weight
        leaves = [_entries(leaf.to(weight)) for leaf in tensors(x)]
        bins = weight.new_zeros(len(leaves[0]), _BINS)
        for i, entries in enumerate(leaves):
            places, signs = _sketch(self.seed + i, entries.shape[1])
            bins = bins.index_add(1, places.to(weight.device), entries * signs.to(weight))
        hidden = F.relu(self.first(F.layer_norm(bins, (_BINS,))))
        scores: Tensor = self.last(hidden)
        return scores.squeeze(1)


def _entries(x: Tensor) -> Tensor:
    """(batch, n) of unit mean square."""
    x = x.nan_to_num(0.0, 0.0, 0.0)
    if x.dim() > 3:
        x = F.adaptive_avg_pool2d(
            x.flatten(1, -3), (min(x.shape[-2], _SIDE), min(x.shape[-1], _SIDE))
        )
    flat = x.reshape(len(x), -1)
    return flat / flat.square().mean(1, keepdim=True).sqrt().clamp(min=torch.finfo(x.dtype).tiny)


@lru_cache
def _sketch(seed: int, entries: int) -> tuple[Tensor, Tensor]:
    """The bin and the sign of each entry."""
    rng = torch.Generator().manual_seed(seed)
    places = torch.randperm(_BINS, generator=rng)[:entries]
    if entries > _BINS:
        places = torch.randint(_BINS, (entries,), generator=rng)
    return places, torch.randint(2, (entries,), generator=rng) * 2 - 1
