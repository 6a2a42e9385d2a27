"""Targets: the loss of the best output that ignores the input, where the kind of loss is known."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SAME = 1e-3  # relative difference of the loss and that of the kind that was seen


@dataclass
class Targets:
    """The last loss of a known kind, and what a constant output would reach on its targets."""

    kind: str = ""
    value: float = math.nan  # of the loss itself
    constant: float = math.nan  # of the best constant output
    output: float = math.nan  # ratio of the outputs' spread to the targets'

    def note(self, name: str, given: dict[str, Any], result: Any) -> None:
        """Note an operation, if it is a loss."""
        if name.startswith("nll_loss"):
            counts = torch.bincount(given["target"].flatten().clamp_min(0)).double()
            share = counts[counts > 0] / counts.sum()
            entropy = float(-(share * share.log()).sum())
            entropy += (len(share) - 1) / (2 * float(counts.sum()))  # Miller 1955: of few samples
            self._take("cross_entropy", result[0], entropy)
        elif name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"):
            target = given["target"]
            rows = target.detach().double().flatten(1) if target.dim() > 1 else target.double()
            if len(rows) > 1 and name == "mse_loss":
                self._take(name, result, float(rows.var(0).mean()))
            elif len(rows) > 1:
                self._take(name, result, float((rows - rows.median(0)[0]).abs().mean()))
        elif name.startswith("binary_cross_entropy") and given.get("weight") is None:
            target = given["target"].detach().double()
            pooled = [d for d in range(target.dim()) if d != 1 or target.dim() == 1]  # and pixels
            no = 1 - target.mean(pooled, keepdim=True)
            heavy = given.get("pos_weight")
            yes = (1 - no) * (1.0 if heavy is None else heavy.detach().double())
            best = yes / (yes + no)
            terms = (yes + no) * (torch.special.entr(best) + torch.special.entr(1 - best))
            self._take("binary_cross_entropy", result, float(terms.mean()))

    def _take(self, kind: str, result: Any, constant: float) -> None:
        if isinstance(result, Tensor) and result.numel() == 1:
            self.kind, self.value, self.constant = kind, float(result), constant

    def of(self, loss: float) -> float | None:
        """What a constant output reaches, if this is the loss itself."""
        whole = abs(self.value - loss) <= SAME * max(abs(loss), 1e-6)
        return self.constant if whole and math.isfinite(self.constant) else None


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
