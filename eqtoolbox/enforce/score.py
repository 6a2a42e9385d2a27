"""The pose score: a small network that tells the poses of any input apart, by all its entries."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.symmetry.structure import Tree, tensors

_FEATURES, _BINS = 16, 1024
_MIXED = 4  # channels that an image is brought to
_SLOW = 0.2  # scale of the scores: at 1 choices harden before they are good (digits .94, not .96)
_SIDE = 16  # pixels that are left of it along each of its sides


class PoseScore(nn.Module):
    """Tensors or trees of them, (batch, ...), to one number a sample, whatever their shapes.

    Images, (batch, ..., height, width) of four dimensions or more, are pooled to 16 x 16 at most,
    their channels mixed to four by chance, and go through two convolutions; of anything else each
    entry becomes 16 learned features. All go with a sign into bins by chance: up to 1024 of them
    have one for themselves, more share them (a count sketch). The score is linear in the bins.
    What is chance is fixed by the seed. Leaves and bins are brought to unit size; what is not
    finite is zero. Entries are read by their place: a model that does not mind the order of nodes
    needs a score that does not either.

    Args:
        seed: of the bins and of the initial weights; the global random stream is not drawn from.

    Reference: the count sketch, Charikar et al. 2002.

    Example:
        >>> score = PoseScore()
        >>> score(torch.eye(3)).shape, sum(p.numel() for p in score.parameters())
        (torch.Size([3]), 3969)
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.images = nn.Sequential(
                nn.Conv2d(_MIXED, _FEATURES, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2, ceil_mode=True),
                nn.Conv2d(_FEATURES, _FEATURES, 3, padding=1),
                nn.ReLU(),
            )
            self.entries = nn.Sequential(nn.Linear(1, _FEATURES), nn.ReLU())
            self.bins = nn.Linear(_BINS, 1)

    def forward(self, x: Tree) -> Tensor:
        """(batch,)"""
        weight = self.bins.weight
        leaves = [self._features(leaf.to(weight)) for leaf in tensors(x)]
        bins = weight.new_zeros(len(leaves[0]), _BINS)
        for i, features in enumerate(leaves):
            places, signs = _sketch(self.seed + i, features.shape[1])
            bins = bins.index_add(1, places.to(weight.device), features * signs.to(weight))
        scores: Tensor = self.bins(F.layer_norm(bins, (_BINS,)))
        return _SLOW * scores.squeeze(1)

    def _features(self, x: Tensor) -> Tensor:
        """(batch, n)"""
        x = x.nan_to_num(0.0, 0.0, 0.0)
        size = x.flatten(1).square().mean(1).sqrt() if x.dim() > 1 else x.abs()
        x = x / size.clamp(min=torch.finfo(x.dtype).tiny).reshape(-1, *[1] * (x.dim() - 1))
        if x.dim() < 4:
            features: Tensor = self.entries(x.reshape(len(x), -1, 1))
            return features.flatten(1)
        height, width = x.shape[-2:]
        small = F.adaptive_avg_pool2d(x.flatten(1, -3), (min(height, _SIDE), min(width, _SIDE)))
        mix = _mixing(self.seed, small.shape[1]).to(small)
        features = self.images(torch.einsum("mc,bchw->bmhw", mix, small))
        return features.flatten(1)


@lru_cache
def _mixing(seed: int, channels: int) -> Tensor:
    """A random matrix of unit columns, (4, channels)."""
    mix = torch.randn(_MIXED, channels, generator=torch.Generator().manual_seed(seed))
    return mix / mix.norm(dim=0)


@lru_cache
def _sketch(seed: int, entries: int) -> tuple[Tensor, Tensor]:
    """The bin and the sign of each entry."""
    rng = torch.Generator().manual_seed(seed)
    places = torch.randperm(_BINS, generator=rng)[:entries]
    if entries > _BINS:
        places = torch.randint(_BINS, (entries,), generator=rng)
    return places, torch.randint(2, (entries,), generator=rng) * 2 - 1
