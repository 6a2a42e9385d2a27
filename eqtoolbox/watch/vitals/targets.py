"""Targets: the loss of the best output that ignores the input, where the kind of loss is known."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eqtoolbox.watch.vitals.tally import Labels

SAME = 1e-3  # relative difference of the loss and that of the kind that was seen
MEAN, SUM = 1, 2  # reductions, as ATen numbers them
MEANS = 8  # weighted ones from the median, to the best constant of Huber's loss
FEW = 0.1  # share of labels whose class came once, up to which a batch tells all classes


@dataclass
class Targets:
    """The last loss of a known kind, and what a constant output would reach on its targets."""

    kind: str = ""
    value: float = math.nan  # of the loss itself
    constant: float = math.nan  # of the best constant output
    labels: Labels | None = None  # where the classes of a batch may not be all there are
    heavy: Tensor | None = None  # weights of classes
    scale: float = 1.0  # of the loss over a mean over its targets
    moments: dict[str, float] = field(default_factory=dict)  # of the targets, see `_moments`

    def note(self, name: str, given: dict[str, Any], result: Any) -> None:
        """Note an operation, if it is a loss."""
        if name.startswith("nll_loss"):
            self._classes(given, result[0])
        elif name == "mse_loss":
            self._take(name, given, result, *_of_squares(given))
        elif name in ("smooth_l1_loss", "huber_loss"):
            self._take(name, given, result, *_of_distances(name, given))
        elif name.startswith("binary_cross_entropy"):
            self._take("binary_cross_entropy", given, result, *_of_bits(given))

    def _take(
        self,
        kind: str,
        given: dict[str, Any],
        result: Any,
        constant: float,
        weight: float,
        labels: Labels | None = None,
    ) -> None:
        """Keep a loss and the least mean over its targets, which together have this weight."""
        if isinstance(result, Tensor) and result.numel() == 1:
            self.scale = weight if given.get("reduction", MEAN) == SUM else 1.0
            self.kind, self.value, self.constant = kind, float(result), constant * self.scale
            self.labels, self.heavy = labels, given.get("weight")
            self.moments = _moments(given)

    def _classes(self, given: dict[str, Any], result: Any) -> None:
        """Keep a loss of classes; those of pairs within the batch are known, each comes once."""
        target, heavy = given["target"], given.get("weight")
        target = target[target != given.get("ignore_index", -100)]
        labels, columns = Labels(target), given["self"].shape[min(given["self"].dim(), 2) - 1]
        weight = float(target.numel() if heavy is None else heavy.detach()[target].double().sum())
        paired = target.numel() == columns and labels.each_once
        least = math.log(columns) if paired else labels.entropy(heavy)
        known = None if paired else labels
        self._take("cross_entropy", given, result, least, weight, known)

    def of(self, loss: float, pool: Labels | None = None) -> float | None:
        """What a constant output reaches, if this is the loss itself.

        Args:
            loss: the loss of the step.
            pool: labels of this batch and of others, for one of too few labels for its classes.
        """
        constant, labels = self.constant, self._counted(pool)
        if labels is not self.labels and labels is not None:
            constant = labels.entropy(self.heavy) * self.scale
        return constant if self.whole(loss) and math.isfinite(constant) else None

    def once(self, pool: Labels) -> float:
        """Share of the labels behind a constant whose class came once; 0 of other targets."""
        labels = self._counted(pool)
        return 0.0 if labels is None else labels.once

    def _counted(self, pool: Labels | None) -> Labels | None:
        """The labels that tell what a constant output reaches: of a batch of few, the pool's."""
        few = pool is not None and self.labels is not None and self.labels.once > FEW
        return pool if few else self.labels

    def whole(self, loss: float) -> bool:
        """Whether this is the loss itself."""
        return abs(self.value - loss) <= SAME * max(abs(loss), 1e-6)

    def sign(self, loss: float) -> int:
        """1 if this is the loss itself, -1 if its negative is, else 0."""
        return 1 if self.whole(loss) else -1 if self.whole(-loss) else 0


def _moments(given: dict[str, Any]) -> dict[str, float]:
    """Size of the targets, how many samples they are of, and mean and variance over these."""
    target = given["target"].detach()
    known = target if "ignore_index" not in given else target[target != given["ignore_index"]]
    each = known.double().flatten(1).mean(1) if known.dim() > 1 else known.double().flatten()
    if len(each) < 2:
        return {}
    size = float(known.double().square().mean().sqrt())
    mean, variance = float(each.mean()), float(each.var())
    return {"size": size, "mean": mean, "variance": variance, "samples": float(len(each))}


def _of_squares(given: dict[str, Any]) -> tuple[float, float]:
    """Variance of each number of a target over the batch, without bias."""
    rows = _rows(given)
    return (float(rows.var(0).mean()) if len(rows) > 1 else math.nan), rows.numel()


def _of_distances(name: str, given: dict[str, Any]) -> tuple[float, float]:
    """Huber's loss of the best constant, by weighted means, each of which lowers it."""
    rows = _rows(given)
    if len(rows) < 2:
        return math.nan, rows.numel()
    width = float(given.get("delta" if name == "huber_loss" else "beta", 1.0))
    best = rows.median(0)[0]
    for _ in range(MEANS):
        near = width / (rows - best).abs().clamp_min(width)
        best = (near * rows).sum(0) / near.sum(0)
    least = float(F.huber_loss(best.expand_as(rows), rows, delta=width))
    return (least if name == "huber_loss" else least / width), rows.numel()


def _of_bits(given: dict[str, Any]) -> tuple[float, float]:
    """Entropy of the bits of each channel, by the weights of ones and of numbers."""
    target = given["target"].detach().double()
    each, ones = given.get("weight"), given.get("pos_weight")
    yes = target if ones is None else target * ones.detach().double()
    no = 1 - target
    if each is not None:
        yes, no = yes * each.detach().double(), no * each.detach().double()
    pooled = [d for d in range(target.dim()) if d != 1 or target.dim() == 1]  # and pixels
    yes, no = yes.mean(pooled), no.mean(pooled)
    entr = torch.special.entr
    return float((entr(yes) + entr(no) - entr(yes + no)).mean()), target.numel()


def _rows(given: dict[str, Any]) -> Tensor:
    target: Tensor = given["target"].detach().double()
    return target.flatten(1) if target.dim() > 1 else target


def are_probabilities(x: Tensor, dim: int) -> bool:
    """Whether rows are distributions already: not negative, with a sum of 1.

    Example:
        >>> x = torch.randn(5, 3)
        >>> are_probabilities(x.softmax(-1), -1), are_probabilities(x.log_softmax(-1), -1)
        (True, False)
    """
    if x.shape[dim] < 2 or not x.numel():
        return False
    sums = x.detach().sum(dim, dtype=torch.promote_types(x.dtype, torch.float32))
    return bool(x.min() >= 0) and bool(((sums - 1).abs() < 1e-3).all())
