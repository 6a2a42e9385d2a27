"""When an eigenpair is there: by its residual, or by the bound of its value."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from eqtoolbox.linalg.krylov import Ritz
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import Vector, norm

Until = Literal["pairs", "values"]
SETTLED = 3e-3  # relative residual: above it, members of clusters were seen to be missed
FOLLOWED = 1e-2  # the same in a search that goes on from an earlier one


@dataclass(frozen=True, kw_only=True)
class Accept:
    """What is asked of Ritz pairs, relative to the largest |value|."""

    until: Until
    tol: float
    warm: bool  # the search goes on from an earlier one
    loose: bool  # it begins afresh, and no fresh chain follows

    def enough(self, ritz: Ritz, wanted: Tensor, asymmetry: float) -> Tensor:
        """Which of the wanted pairs the search may stop at, (K,)."""
        if self.until == "values":
            return self.reached(ritz, wanted)
        size = float(ritz.values.abs().max())
        target = self.tol if self.loose else min(self.tol, SETTLED)
        return ritz.residuals[wanted] <= min(self.tol * size, target * size + asymmetry)

    def reached(self, ritz: Ritz, wanted: Tensor) -> Tensor:
        """Which of them are as good as was asked, (K,)."""
        size, residuals = float(ritz.values.abs().max()), ritz.residuals[wanted]
        if self.until == "pairs":
            return residuals <= self.tol * size
        most = max(self.tol, FOLLOWED if self.warm else SETTLED)
        small = error_bounds(ritz, wanted) <= self.tol * size
        return small & (residuals <= most * size)


def product_errors(operator: LinearOperator, vectors: Sequence[Vector]) -> Tensor:
    """How far products along these may be off, (k,) float64; 0 where they are exact."""
    if not operator.error_products:
        return torch.zeros(len(vectors), dtype=torch.float64)
    return torch.tensor([norm(operator.product_error(v)) for v in vectors], dtype=torch.float64)


def error_bounds(ritz: Ritz, wanted: Tensor) -> Tensor:
    """min(r, r²/gap, 2R²/(g + √(g² + 4R²))) for each wanted Ritz value, (K,).

    Of one pair r is the residual and gap the distance to the other Ritz values less their r; of
    all together R² = Σ r² and g is the distance to those that are not wanted, less their r: pairs
    that are close to each other, and wanted, do not spoil each other's bound.

    Only r is sure: the others take it that no eigenvalue lies where no Ritz value shows one. Two at
    1 and 0.999 that a loose tol meets as one put it off by 5e-4 = r, where r²/gap of 0.4 says 6e-7.

    Reference:
        Parlett 1998, The Symmetric Eigenvalue Problem, theorem 11.7.1; Li & Li 2005, A note on
        eigenvalues of perturbed Hermitian matrices.
    """
    apart = (ritz.values[:, None] - ritz.values).abs() - ritz.residuals
    apart.fill_diagonal_(float("inf"))
    r, rows = ritz.residuals[wanted], apart[wanted]
    alone = (r**2 / rows.min(dim=1).values.clamp(min=0)).nan_to_num(nan=float("inf"))
    others = torch.ones(len(ritz.values), dtype=torch.bool)
    others[wanted] = False
    if not others.any():
        return torch.minimum(r, alone)
    gap = rows[:, others].min(dim=1).values.clamp(min=0)
    total = r.square().sum()
    together = (2 * total / (gap + (gap**2 + 4 * total).sqrt())).nan_to_num(nan=0.0)
    return torch.minimum(r, torch.minimum(alone, together))
