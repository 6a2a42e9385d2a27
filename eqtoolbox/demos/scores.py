"""How good predictions are: fractions with their standard errors over test samples."""

import math

from torch import Tensor

from eqtoolbox.demos.demo import Standing


def accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of samples whose largest logit is that of their label."""
    right = (logits.argmax(1) == labels).double()
    return float(right.mean()), float(right.std()) / math.sqrt(len(right))


def relative_error(outputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Root mean square of the error over that of the targets; the standard error by linearising.

    Example:
        >>> import torch
        >>> relative_error(torch.full((3, 1), 1.5), torch.ones(3, 1))
        (0.5, 0.0)
    """
    error = (outputs - targets).double().square().flatten(1).sum(1)
    size = targets.double().square().flatten(1).sum(1)
    ratio = float(error.sum() / size.sum())
    spread = float((error - ratio * size).std() / size.mean()) / math.sqrt(len(size))
    return math.sqrt(ratio), spread / (2 * math.sqrt(ratio)) if ratio > 0 else 0.0


ACCURACY = Standing(name="accuracy", of=accuracy, rising=True)
