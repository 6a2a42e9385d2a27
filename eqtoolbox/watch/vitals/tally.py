"""Labels: how often each class was asked for, and the entropy of the classes behind it."""

import torch
from torch import Tensor

TINY = torch.finfo(torch.float64).tiny


class Labels:
    """Counts of classes, of one batch or of several.

    Example:
        >>> labels = Labels(torch.tensor([0, 0, 1, 1, 2]))
        >>> labels.once, Labels(torch.tensor([3, 0, 1, 2])).each_once
        (0.2, True)
        >>> labels.add(labels)
        >>> labels.counts.tolist(), labels.once
        ([4, 4, 2], 0.0)
    """

    def __init__(self, classes: Tensor | None = None) -> None:
        """Count classes, numbers from 0 on, of any shape."""
        found = torch.zeros(0, dtype=torch.int64) if classes is None else classes.detach().flatten()
        self.counts = torch.bincount(found).cpu()  # by class

    def add(self, other: "Labels") -> None:
        """Count those of another batch, too."""
        size = max(len(self.counts), len(other.counts))
        self.counts = _wide(self.counts, size) + _wide(other.counts, size)

    @property
    def once(self) -> float:
        """Share of the labels whose class came once: Good's estimate of the classes not seen."""
        return float((self.counts == 1).sum()) / max(int(self.counts.sum()), 1)

    @property
    def each_once(self) -> bool:
        """Whether all classes up to the largest came once."""
        return bool((self.counts == 1).all())

    def entropy(self, weight: Tensor | None = None) -> float:
        """Entropy of the classes, by their weights, of those that were not seen, too.

        The estimate of Chao, Wang and Jost (2013), here of weighted classes; where all were seen
        often it is Miller's (1955). 0 of a single class, NaN of no labels.
        """
        seen = self.counts > 0
        counts = self.counts[seen].double()
        if len(counts) == 1 < int(counts[0]):  # as of pairs whose first of many columns is right
            return 0.0
        each = torch.ones_like(counts)
        if weight is not None:
            each = weight.detach().double().cpu()[: len(seen)][seen]
        total = float((each * counts).sum())
        if not total:
            return float("nan")
        share = each * counts / total
        known = share * (counts.log() - torch.digamma(counts) - share.clamp_min(TINY).log())
        rest = float(share[counts == 1].sum()) * _beyond(counts)
        return float(known.sum() - (share.square() / counts).sum() / 2) + rest


def _beyond(counts: Tensor) -> float:
    """What a label of the classes not seen adds, by how many came once and twice."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    if once < 2:
        return 0.0
    from scipy.special import hyperu  # which takes a while to load

    return float(hyperu(1, 1, 2 * twice / once if twice else 2 / (once - 1)))


def _wide(counts: Tensor, size: int) -> Tensor:
    return torch.cat([counts, counts.new_zeros(size - len(counts))])
