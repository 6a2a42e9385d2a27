"""How good predictions are, as fractions."""

from torch import Tensor

from eqtoolbox.demos.demo import Score


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of samples whose largest logit is that of their label."""
    return float((logits.argmax(1) == labels).float().mean())


def relative_error(outputs: Tensor, targets: Tensor) -> float:
    """Root mean square of the error over that of the targets."""
    return float((outputs - targets).norm() / targets.norm())


ACCURACY = Score(name="accuracy", of=accuracy, rising=True)
