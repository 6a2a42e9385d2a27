"""The Lanczos iteration with full reorthogonalisation, thick restarts and fresh starts.

Basis rows Q, T = QHQᵀ, and orthonormal rows R beyond them obey HQᵀ = QᵀT + RᵀSᵀ, so that a Ritz
pair (θ, z) of T has the residual ‖HQᵀz − θQᵀz‖ = ‖Sᵀz‖ without a further product. R holds one row,
the vector that the chain goes on with, and one more for each fresh start. Rows of both are stored
one after the other, so that a product is made orthogonal to all of them in one pass.
Reference: Wu & Simon 2000, Thick-restart Lanczos method for large symmetric eigenvalue problems;
Ruhe 1979, Implementation aspects of band Lanczos algorithms.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.linalg.basis import Basis, Flat
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import Vector, random_like


class Asymmetric(ValueError):
    """Products that are not those of a symmetric operator.

    Attributes:
        share: |⟨u,Hv⟩ − ⟨v,Hu⟩| over ‖H‖.
    """

    def __init__(self, share: float, message: str) -> None:
        super().__init__(message)
        self.share = share


@dataclass(frozen=True, kw_only=True)
class Ritz:
    """The eigenpairs of the projected operator T, ascending."""

    values: Tensor  # (m,) float64
    weights: Tensor  # (m, m) float64, column i the coordinates of Ritz vector i
    residuals: Tensor  # (m,) float64, ‖Hv − θv‖
    couplings: Tensor  # (b, m) float64, ⟨r_j, Hv_i⟩ with each row beyond the space


class Krylov:
    """A growing space of a symmetric operator, spanned by chains of products.

    Raises:
        FloatingPointError: a product is not finite.
        Asymmetric: the operator is not symmetric.
        ValueError: the start vector is zero or not finite.
    """

    def __init__(
        self,
        operator: LinearOperator,
        capacity: int,
        generator: torch.Generator,
        start: Vector | Sequence[Vector] | None = None,
    ) -> None:
        starts = [] if start is None else [start] if isinstance(start, Mapping) else start
        self.operator = operator
        self.capacity = min(capacity, operator.size)
        self.basis = Basis(operator.space, self.capacity + max(len(starts), 1) + 1)  # Q and R
        self.size = 0  # dimension m of the space that H has been applied to: rows of Q
        self.matvecs = 0
        self.scale = 0.0  # largest ‖Hq‖ seen
        self.asymmetry = 0.0  # largest departure of QHQᵀ from its transpose seen
        self._generator = generator
        self._projected = torch.zeros(0, 0, dtype=torch.float64)  # T (m, m)
        self._couplings = torch.zeros(0, 0, dtype=torch.float64)  # S (m, b)
        self._lost = torch.zeros(0, dtype=torch.float64)  # (m,) remainders dropped as rounding
        if start is None:
            self.refresh()
        for v in starts:
            self._begin(v)

    def _begin(self, start: Vector) -> None:
        """One more row of R, of what is new in a vector."""
        w = self.basis.pack(self.operator.space.admit(start, "start"))
        length = self.basis.norm(w)
        if not 0 < length < math.inf:
            raise ValueError(f"start must be finite and not zero, got norm {length}")
        self.basis.orthogonalise(w)
        new = self.basis.norm(w)
        if new > 100 * self.operator.space.eps * length:
            self._push(w, new)

    @property
    def full(self) -> bool:
        """No room for another vector."""
        return self.size >= self.capacity

    def step(self, row: int = -1) -> bool:
        """Take row `row` of R into the basis and apply H to it: one product.

        Returns:
            Whether the chain goes on; False when its space is invariant to rounding.
        """
        if not self._beyond:
            self.refresh()
        w, predicted = self._product_of_next(row)
        # first pass: what symmetry predicts; second pass: what is left, rounding if H is symmetric
        known = torch.cat([predicted, self.basis.coefficients(w, self.size - 1, self.size)])
        self.basis.subtract(w, known)
        rest = self.basis.coefficients(w)
        self.basis.subtract(w, rest)
        column, aside = known + rest[: self.size], rest[self.size :]
        beta = self.basis.norm(w)
        self._check(rest[: self.size - 1], math.hypot(*column.tolist(), *aside.tolist(), beta))
        self._projected = _bordered(self._projected, column)
        self._couplings = torch.cat([self._couplings, aside[None]])
        goes_on = beta > 100 * self.operator.space.eps * self.scale
        self._lost = torch.cat([self._lost, torch.tensor([0.0 if goes_on else beta]).double()])
        if goes_on:
            # where most of it was subtracted, what is left is orthogonal to rounding of that only
            self._push(w, beta if beta > float(rest.norm()) else self._cleaned(w))
            self._couplings[-1, -1] = beta
        return goes_on

    def _cleaned(self, w: Flat) -> float:
        """The norm of `w` once it is orthogonal to all rows again."""
        self.basis.subtract(w, self.basis.coefficients(w))
        return self.basis.norm(w)

    def ritz(self) -> Ritz:
        """Eigenpairs of T with their residuals."""
        values, weights = torch.linalg.eigh(self._projected)
        couplings = self._couplings.T @ weights
        floor = self.asymmetry + self.operator.space.eps * self.scale + self._lost @ weights.abs()
        residuals = couplings.square().sum(dim=0).sqrt() + floor
        return Ritz(values=values, weights=weights, residuals=residuals, couplings=couplings)

    def restart(self, ritz: Ritz, keep: Tensor) -> None:
        """Keep the Ritz vectors with indices `keep` (p,) as the basis, and all of R."""
        mix = ritz.weights[:, keep]
        self.basis.rotate(mix)
        self.size = len(keep)
        self._projected = torch.diag(ritz.values[keep])
        self._couplings = mix.T @ self._couplings
        self._lost = self._lost @ mix.abs()

    def image(self, weights: Tensor) -> dict[str, Tensor]:
        """H of a vector of the basis, without a product.

        Args:
            weights: its coordinates, (m,).
        """
        whole = torch.cat([self._projected @ weights, self._couplings.T @ weights])
        return self.basis.combine(whole[:, None])[0]

    def leaving(self) -> float:
        """Share of the last product that neither the basis nor the rows before it hold."""
        known = self._projected[-1].square().sum() + self._couplings[-1].square().sum()
        return float(self._couplings[-1, -1] / known.sqrt()) if known > 0 else 0.0

    def turn(self, wanted: Tensor) -> None:
        """Make the last row of R the direction that Ritz vectors couple to most.

        The rows span what they did: a reflection takes the leading left singular vector of the
        couplings to the last of them.

        Args:
            wanted: coordinates of the Ritz vectors, (m, p).
        """
        if self._beyond > 1 and wanted.shape[1]:
            self._reflect(torch.linalg.svd(self._couplings.T @ wanted)[0][:, 0])

    def follow(self) -> None:
        """Make the last row of R all that the last product had beyond the basis."""
        self.turn(torch.eye(self.size, dtype=torch.float64)[:, -1:])

    def _reflect(self, direction: Tensor) -> None:
        """Make the last row of R a combination of all, the others what is left of their span.

        Args:
            direction: its coefficients, (b,), of norm 1.
        """
        mirror = direction * (1.0 if direction[-1] <= 0 else -1.0)
        mirror[-1] -= 1.0
        mirror = mirror / mirror.norm()
        self.basis.reflect(mirror)
        self._couplings = self._couplings - 2 * (self._couplings @ mirror)[:, None] * mirror

    def refresh(self) -> None:
        """Begin a fresh chain: a random last row of R, which sees what the basis cannot.

        What the rows of R hold is part of it: something missing may hide in one of them.
        """
        w = self.basis.pack(random_like(self.operator.space.like, self._generator))
        inside = self.basis.orthogonalise(w)[self.size :]
        length = self.basis.norm(w)
        self._push(w, length)
        mixed = torch.cat([inside, torch.tensor([length], dtype=torch.float64)])
        if len(inside):
            self._reflect(mixed / mixed.norm())

    @property
    def _beyond(self) -> int:
        """Rows b of R."""
        return len(self.basis) - self.size

    def _product_of_next(self, row: int) -> tuple[Flat, Tensor]:
        row %= self._beyond
        predicted = self._couplings[:, row]
        self._couplings = torch.cat([self._couplings[:, :row], self._couplings[:, row + 1 :]], 1)
        self.basis.move(self.size + row, self.size)
        w = self.basis.pack(self.operator(self.basis.vector(self.size)))
        self.size += 1
        self.matvecs += 1
        return w, predicted

    def _push(self, w: Flat, length: float) -> None:
        self.basis.append(w, length)
        self._couplings = torch.cat([self._couplings, torch.zeros(self.size, 1).double()], dim=1)

    def _check(self, rest: Tensor, length: float) -> None:
        self.scale = max(self.scale, length)
        self.asymmetry = max(self.asymmetry, float(rest.norm()))
        check_product(self.operator, length, self.scale, self.asymmetry, self.matvecs)


def check_product(
    operator: LinearOperator, length: float, scale: float, asymmetry: float, count: int
) -> None:
    """Refuse the `count`-th product, of norm `length`, if it is not finite or H not symmetric.

    Args:
        operator: H.
        length, scale: ‖Hq‖ of this product, and the largest so far.
        asymmetry: largest departure of QHQᵀ from its transpose seen.
        count: products so far.

    Raises:
        FloatingPointError: it is not finite.
        Asymmetric: the operator is not symmetric.
    """
    if not math.isfinite(length):
        raise FloatingPointError(
            f"the operator's product must be finite, got norm {length} in product {count}; the "
            "loss may overflow"
        )
    if asymmetry > operator.accuracy * scale:
        raise Asymmetric(
            asymmetry / scale,
            f"the operator must be symmetric, got |⟨u,Hv⟩ − ⟨v,Hu⟩| = "
            f"{asymmetry / scale:.1e}·‖H‖ > {operator.accuracy:.1e} in product {count}; the loss "
            "may be random (dropout, shuffling), take a number that depends on the parameters for "
            "a constant (detach, no_grad, a gradient taken inside without create_graph=True), have "
            "a wrong second derivative, or run in low precision (then give the operator that "
            "accuracy)",
        )


def _bordered(T: Tensor, column: Tensor) -> Tensor:
    """T with one more row and column."""
    m = len(column)
    larger = T.new_zeros(m, m)
    larger[: m - 1, : m - 1] = T
    larger[:, -1] = column
    larger[-1, :] = column
    return larger
