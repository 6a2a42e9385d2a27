"""Strides: how large gradient, step and decay of each weight are, beside the weight itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.linalg.vectors import norms
from eqtoolbox.watch.snapshot import Snapshot

DECOUPLED = ("AdamW", "SGDW")  # optimizers whose decay is a part of the step, not of the gradient


@dataclass(frozen=True)
class Strides:
    """Norms of the weights (parameters of two dimensions and more), in the order of their use."""

    names: list[str]
    weight: list[float]
    gradient: list[float]  # of the loss
    update: list[float]
    size: list[int]  # entries
    whole: float  # norm of the update of all parameters
    decay: float  # share of weight decay in the step, or in the gradient

    @classmethod
    def of(
        cls, snapshot: Snapshot, gradient: Mapping[str, Tensor], order: Sequence[str]
    ) -> "Strides":
        """Of a step whose replayed gradient is known."""
        before, after = snapshot.before, snapshot.after or {}
        matrices = [n for n in order if n in before and before[n].dim() > 1 and n in gradient]
        weights = set(matrices)
        weight, slope = (norms(of[n] for n in matrices).tolist() for of in (before, gradient))
        names = [*matrices, *(n for n in after if n in before and n not in weights)]
        moved = (after[n] - before[n] for n in names)  # one at a time
        moves = norms(torch.linalg.vector_norm(u) for u in moved).tolist()
        step = moves[: len(matrices)]
        decayed = total = 0.0
        for n, w, g, u in zip(matrices, weight, slope, step, strict=True):
            group = snapshot.group_of(n)
            if group is not None:
                coupled = snapshot.optimizer not in DECOUPLED
                rate = group.weight_decay * w * (1.0 if coupled else group.lr)
                decayed, total = decayed + rate**2, total + (g + rate if coupled else u) ** 2
        return cls(
            names=matrices,
            weight=weight,
            gradient=slope,
            update=step,
            size=[before[n].numel() for n in matrices],
            whole=math.hypot(*moves),
            decay=math.sqrt(decayed / total) if total > 0 else 0.0,
        )

    @property
    def share(self) -> float:
        """|update| of all parameters over |weight| of all weights."""
        return self.whole / max(math.hypot(*self.weight), 1e-300)

    @property
    def ratios(self) -> list[float]:
        """|update| / |weight| of each."""
        return [u / w for u, w in zip(self.update, self.weight, strict=True) if w > 0]

    @property
    def slopes(self) -> list[float]:
        """Root mean square of the gradient of each."""
        return [g / math.sqrt(n) for g, n in zip(self.gradient, self.size, strict=True)]
