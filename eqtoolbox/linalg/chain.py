"""The Lanczos iteration of which two vectors are held: the largest eigenvalue, and no vector.

Without reorthogonalisation an eigenvalue that has been found may come again as a copy of itself;
the largest one is right, and β|s_m|, s the eigenvector of T, stays its residual.
Reference: Paige 1980, Accuracy and effectiveness of the Lanczos algorithm for the symmetric
eigenproblem.
"""

import math
from dataclasses import dataclass

import torch

from eqtoolbox.expect.deadline import now
from eqtoolbox.linalg.krylov import check_product
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import add, add_to, dot, norm, random_like
from eqtoolbox.linalg.vectors import scale as scaled


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The largest eigenvalue that a chain has met."""

    value: float
    residual: float  # ‖Hv − λv‖ of the vector that was not formed
    bound: float  # on |λ − eigenvalue|, where the gap to the next Ritz value hides no other
    size: float  # largest |Ritz value|
    asymmetry: float  # |⟨q, Hp⟩ − ⟨p, Hq⟩| of neighbours at most, over ‖H‖
    matvecs: int


def largest(
    operator: LinearOperator,
    tol: float,
    max_matvecs: int,
    generator: torch.Generator,
    seconds: float = math.inf,
) -> Largest:
    """The largest eigenvalue to a residual of tol times the largest |eigenvalue|, or nearly that.

    Args:
        operator: H.
        tol: of the residual.
        max_matvecs, seconds: after which what is known by then is returned.
        generator: of the random start.

    Raises:
        FloatingPointError: a product is not finite.
        Asymmetric: the operator is not symmetric.

    Example:
        >>> from eqtoolbox.linalg import MatrixOperator
        >>> H = MatrixOperator(torch.diag(torch.tensor([1.0, -3.0, 2.0])))
        >>> round(largest(H, 1e-3, 9, torch.Generator().manual_seed(0)).value, 5)
        2.0
    """
    q = random_like(operator.space.like, generator)
    q, before, beta = scaled(1 / norm(q), q), dict[str, torch.Tensor](), 0.0
    alphas, betas, size, asymmetry = list[float](), list[float](), 0.0, 0.0
    ends = now() + seconds
    while True:
        product = operator(q)
        alpha, length = dot(q, product), norm(product)
        w = add(product, q, -alpha)
        del product
        if before:
            inside = dot(before, w)
            asymmetry = max(asymmetry, abs(inside - beta))
            add_to(w, before, -inside)
        left = dot(q, w)
        add_to(w, q, -left)
        size, beta = max(size, length), norm(w)
        check_product(operator, length, size, asymmetry, len(alphas) + 1)
        alphas.append(alpha + left)
        T = torch.diag(torch.tensor(alphas, dtype=torch.float64))
        off = torch.tensor(betas, dtype=torch.float64)
        values, weights = torch.linalg.eigh(T + torch.diag(off, 1) + torch.diag(off, -1))
        floor = asymmetry + operator.space.eps * size
        residuals = beta * weights[-1].abs() + floor
        most = float(values.abs().max())
        over = beta <= 100 * operator.space.eps * size or len(alphas) == operator.size
        there = float(residuals[-1]) <= tol * most + asymmetry and len(alphas) > 1
        if over or there or len(alphas) >= max_matvecs or now() >= ends:
            residual, apart = float(residuals[-1]), (values[-1] - values - residuals)[:-1]
            gap = min(apart.tolist(), default=math.inf)
            return Largest(
                value=float(values[-1]),
                residual=residual,
                bound=min(residual, residual**2 / gap) if gap > 0 else residual,
                size=most,
                asymmetry=asymmetry / size if size else 0.0,
                matvecs=len(alphas),
            )
        betas.append(beta)
        before, q = q, {n: x.div_(beta) for n, x in w.items()}
