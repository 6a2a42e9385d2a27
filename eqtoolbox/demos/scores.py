"""How good predictions are: fractions with their standard errors over test samples."""

import math

import torch
from torch import Tensor

from eqtoolbox.demos.demo import Measured, Standing


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


def energy_distance(a: Tensor, b: Tensor, shuffles: int = 199) -> Measured:
    """How far two samples are apart in distribution, (n, d) each: 0 alike, 1 nothing in common.

        1 - (E d(a, a') + E d(b, b')) / (2 E d(a, b)), without bias, d the Euclidean distance

    The floor is the 95 % quantile among random divisions of all 2 n into two halves; violated: at
    most one division in a hundred is as far apart.

    Reference: Szekely & Rizzo 2013, doi 10.1016/j.jspi.2013.03.018.

    Example:
        >>> x, y = torch.randn(2, 200, 2, generator=torch.Generator().manual_seed(0))
        >>> energy_distance(x, y).verdict, energy_distance(x, y + 1).verdict
        ('holds', 'violated')
    """
    n, pool = len(a), torch.cat([a, b]).double()
    distances, rng = torch.cdist(pool, pool), torch.Generator().manual_seed(0)
    sides = torch.ones(shuffles + 1, 2 * n, dtype=torch.float64)
    sides[:, n:] = -1
    for row in sides[1:]:
        row[:] = row[torch.randperm(2 * n, generator=rng)]
    apart, total = ((sides @ distances) * sides).sum(1), distances.sum()
    found = 1 - (total + apart) / (n - 1) / ((total - apart) / n)
    p = float((found >= found[0]).double().mean())
    return Measured(
        value=max(float(found[0]), 0.0),
        floor=max(float(found[1:].quantile(0.95)), 0.0),
        verdict="violated" if p <= 0.01 else "holds" if p > 0.1 else "unresolved",
    )


ACCURACY = Standing(name="accuracy", of=accuracy, rising=True)
