"""Held-out gain: one network against another over the same folds, with an error that is honest."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy import stats
from torch import Tensor

_CERTAINTY = 0.95  # two-sided


@dataclass(frozen=True, kw_only=True)
class Gain:
    """How much better one network does than another on samples that neither was trained on."""

    value: float  # mean difference of the scores
    stderr: float  # see `gain`
    quantile: float  # of Student's t: |value| beyond quantile * stderr is told from chance

    @property
    def verdict(self) -> Literal["gains", "none", "loses"]:
        """gains, loses, or "none" within noise."""
        if abs(self.value) <= self.quantile * self.stderr or self.value == 0.0:
            return "none"
        return "gains" if self.value > 0 else "loses"


def gain(scores: Sequence[float], plain: Sequence[float], folds: int) -> Gain:
    """The mean difference over folds; its standard error counts that trainings share samples.

        stderr^2 = (1 / J + 1 / (folds - 1)) Var_j d_j,   d_j = score_j - plain_j,  j = 1 .. J

    The naive error, without the second term, is too small by more than a half and finds gains where
    there are none.

    Args:
        scores, plain: of the same J folds; more folds than `folds` where they are dealt again.
        folds: parts that samples are dealt into.

    Reference: Nadeau & Bengio 2003, Inference for the generalization error.

    Example:
        >>> found = gain([0.9, 0.8, 0.9, 1.0], [0.5, 0.5, 0.5, 0.5], folds=4)
        >>> round(found.value, 3), found.verdict
        (0.4, 'gains')
    """
    d = torch.tensor(scores, dtype=torch.float64) - torch.tensor(plain, dtype=torch.float64)
    spread = float(d.var()) * (1 / len(d) + 1 / (folds - 1))
    tail = (1 - _CERTAINTY) / 2
    return Gain(
        value=float(d.mean()),
        stderr=math.sqrt(spread),
        quantile=float(stats.t.ppf(1 - tail, len(d) - 1)),
    )


def dealt(count: int, folds: int, repeats: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows to train on and to judge by: `folds` parts, each held out once, `repeats` times anew."""
    rng = torch.Generator().manual_seed(seed)
    for _ in range(repeats):
        parts = torch.randperm(count, generator=rng).tensor_split(folds)
        for i, held in enumerate(parts):
            yield torch.cat([*parts[:i], *parts[i + 1 :]]), held
