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
        size, residuals = float(ritz.values.abs().max()), ritz.residuals[wanted]
        if self.until == "values":
            near = residuals <= self._most * size
            if not bool(near.all()):
                return near
            return self.reached(ritz, wanted, error_bounds(ritz, wanted))
        target = self.tol if self.loose else min(self.tol, self._settled)
        return residuals <= min(self.tol * size, target * size + asymmetry)

    def reached(self, ritz: Ritz, wanted: Tensor, bounds: Tensor) -> Tensor:
        """Which of them are as good as was asked, (K,); `bounds` are their `error_bounds`."""
        size, residuals = float(ritz.values.abs().max()), ritz.residuals[wanted]
        if self.until == "pairs":
            return residuals <= self.tol * size
        return (bounds <= self.tol * size) & (residuals <= self._most * size)

    @property
    def _settled(self) -> float:
        """Relative residual from which on members of clusters are not missed."""
        return FOLLOWED if self.warm else SETTLED

    @property
    def _most(self) -> float:
        return max(self.tol, self._settled)


def product_errors(operator: LinearOperator, vectors: Sequence[Vector]) -> Tensor:
    """How far products along these may be off, (k,) float64; 0 where they are exact."""
    if not operator.error_products:
        return torch.zeros(len(vectors), dtype=torch.float64)
    return torch.tensor([norm(operator.product_error(v)) for v in vectors], dtype=torch.float64)


def error_bounds(ritz: Ritz, wanted: Tensor) -> Tensor:
    """min(r, r²/gap, Lehmann's bound) for each wanted Ritz value, (K,).

    Of one pair r is the residual and gap the distance to the other Ritz values less their r.
    Lehmann's is of all together: with D = θ − ρ and the residual vectors C the eigenvalues of
    D + D^-½ CᵀC D^-½ are as far beyond ρ as those of H or farther, if ρ is beyond all other
    eigenvalues. It is taken halfway to the others and their r; half of that gap is left for what
    does not show. Wanted pairs that are close to each other do not spoil the bound.

    Only r is sure: the others take it that no eigenvalue lies where no Ritz value shows one. Two at
    1 and 0.999 that a loose tol meets as one put it off by 5e-4 = r, where r²/gap of 0.4 says 6e-7.

    Reference:
        Parlett 1998, The Symmetric Eigenvalue Problem, theorems 11.7.1 and 10.8.
    """
    apart = (ritz.values[:, None] - ritz.values).abs() - ritz.residuals
    apart.fill_diagonal_(float("inf"))
    r = ritz.residuals[wanted]
    alone = r**2 / apart[wanted].min(dim=1).values.clamp(min=0)
    bounds = torch.fmin(r, alone)
    others = torch.ones(len(ritz.values), dtype=torch.bool)
    others[wanted] = False
    if others.any():
        bounds = torch.minimum(bounds, _lehmann(ritz, wanted, others, 1.0))
        bounds = torch.minimum(bounds, _lehmann(ritz, wanted, others, -1.0))
    return bounds


def _lehmann(ritz: Ritz, wanted: Tensor, others: Tensor, sign: float) -> Tensor:
    """Lehmann's bounds at the upper end, or at the lower one for sign -1; infinite elsewhere."""
    bounds = torch.full((len(wanted),), float("inf"), dtype=torch.float64)
    values = sign * ritz.values
    end = (values[wanted] > values[others].max()).nonzero()[:, 0]
    if not len(end):
        return bounds
    gaps, order = (values[wanted[end]] - (values + ritz.residuals)[others].max()).sort()
    if gaps[0] <= 0:
        return bounds
    end, distances = end[order], gaps - gaps[0] / 2
    C = ritz.couplings[:, wanted[end]]
    scaled = C / distances.sqrt()
    beyond = torch.linalg.eigvalsh(torch.diag(distances) + scaled.T @ scaled)
    bounds[end] = beyond - distances + ritz.residuals[wanted[end]] - C.norm(dim=0)
    return bounds
