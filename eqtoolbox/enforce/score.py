"""The pose score: a small network that tells the poses of any input apart, by all its entries."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.symmetry.structure import Tree, tensors

_FEATURES, _BINS = 32, 2048
_MIXED = 4  # channels that an image is brought to
_SLOW = 0.2  # scale of the scores, by which the choice hardens slowly while it learns
_EDGE = 4.0  # what an infinity counts as, as in masks, in units of the other entries
_SIZE = 32.0  # norm of the features
_STEP = 389  # odd: multiples of it fill all bins
_SIDE = 16  # pixels that are left of it along each of its sides


class PoseScore(nn.Module):
    """Tensors or trees of them, (batch, ...), to one number a sample, whatever their shapes.

    Images, (batch, ..., height, width) of four dimensions or more, are pooled to 16 x 16 at most,
    their channels mixed to four by chance, and go through two convolutions; of anything else each
    entry becomes 32 learned features. All go with a sign into bins by chance: up to 2048 of them
    have one for themselves, more share them (a count sketch). The score is linear in the bins.
    What is chance is fixed by the seed. Leaves and features are brought to one size. Entries are
    read by their place: a model that does not mind the order of nodes needs a score that does not
    either.

    Args:
        seed: of the bins and of the initial weights; the global random stream is not drawn from.

    Reference: the count sketch, Charikar et al. 2002.

    Example:
        >>> score = PoseScore()
        >>> score(torch.eye(3)).shape, sum(p.numel() for p in score.parameters())
        (torch.Size([3]), 12545)
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
        weight = self.bins.weight[0]
        features = torch.cat([self._features(leaf.to(weight)) for leaf in tensors(x)], 1)
        index = torch.arange(features.shape[1], device=weight.device)
        signed = weight[(_STEP * index) % _BINS] * _chance(index, self.seed).sign().to(weight)
        size = features.norm(dim=1).clamp(min=torch.finfo(weight.dtype).tiny)
        scores: Tensor = _SIZE * (features @ signed) / size + self.bins.bias
        return _SLOW * scores

    def _features(self, x: Tensor) -> Tensor:
        """(batch, n)"""
        edges = x.isposinf().to(x) - x.isneginf().to(x)
        x = x.nan_to_num(0.0, 0.0, 0.0)
        size = x.flatten(1).square().mean(1).sqrt() if x.dim() > 1 else x.abs()
        size = size.clamp(min=torch.finfo(x.dtype).tiny).reshape(-1, *[1] * (x.dim() - 1))
        x = x / size + _EDGE * edges
        if x.dim() < 4:
            features: Tensor = self.entries(x.reshape(len(x), -1, 1))
            return features.flatten(1)
        height, width = x.shape[-2:]
        small = F.adaptive_avg_pool2d(x.flatten(1, -3), (min(height, _SIDE), min(width, _SIDE)))
        index = torch.arange(_MIXED * small.shape[1], device=x.device)
        mix = _chance(index, self.seed).reshape(_MIXED, -1).to(small)
        mix = mix / mix.norm(dim=0)
        images: Tensor = self.images(torch.einsum("mc,bchw->bmhw", mix, small))
        return images.flatten(1)


def _chance(index: Tensor, seed: int) -> Tensor:
    """Numbers in [-1, 1] as if by chance, of no random stream, so that calls can be compiled."""
    return (43758.5453 * torch.sin(12.9898 * (index.double() + 1.0) + 78.233 * seed)).frac()
