"""Trace, Frobenius norm and effective rank from products with random vectors, with their errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.expect import notebook
from eqtoolbox.expect.checked import checked
from eqtoolbox.linalg.basis import Basis
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import add, dot, random_like


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number estimated from independent random draws."""

    value: float
    stderr: float  # standard error of the value, 0 where it is exact


@dataclass(frozen=True, kw_only=True)
class SpectralMoments:
    """First and second moments of the spectrum."""

    trace: Estimate  # Σ λ_i
    frobenius_norm: Estimate  # √Σ λ_i²
    effective_rank: Estimate  # (Σ λ_i)² / Σ λ_i², NaN for the zero operator
    matvecs: int

    _repr_html_ = notebook.by_fields


@checked
def spectral_moments(
    operator: LinearOperator,
    *,
    generator: torch.Generator,
    matvecs: int = 48,
    rows: int | None = None,
) -> SpectralMoments:
    """tr H, ‖H‖_F and (tr H)²/‖H‖_F² by Hutch++ in one run.

    A third of the products finds a subspace Π that holds most of H, a third measures H in it
    exactly, the last third samples (I−Π): unbiased, with an error that falls like 1/matvecs
    instead of 1/√matvecs when few eigenvalues dominate. A third of the products is also the number
    of vectors in memory.

    Args:
        operator: H.
        generator: of the random vectors; runs are independent only with different states.
        matvecs: products, at least 6.
        rows: vectors of the subspace at most, at least 1; with fewer of them more of the products
            sample what is outside.

    Raises:
        ValueError: fewer than 6 products, or no rows.

    Reference:
        Meyer, Musco, Musco & Woodruff 2021, Hutch++: optimal stochastic trace estimation,
        arXiv 2010.09649.

    Example:
        >>> from eqtoolbox.linalg import MatrixOperator
        >>> H = MatrixOperator(torch.diag(torch.tensor([3.0, 2.0, 0.0, 0.0])))
        >>> found = spectral_moments(H, generator=torch.Generator().manual_seed(0))
        >>> round(found.trace.value, 4), round(found.frobenius_norm.value**2, 4)
        (5.0, 13.0)
    """
    if matvecs < 6:
        raise ValueError(f"matvecs must be >= 6, two for each of three stages, got {matvecs}")
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be >= 1, got {rows}; None sets no limit")
    before = operator.matvecs
    like = operator.space.like
    sketch = min(matvecs // 3, operator.size, rows or operator.size)
    basis = Basis(operator.space, sketch)
    for _ in range(sketch):
        basis.include(operator(random_like(like, generator)))
    if not len(basis):
        zero = Estimate(value=0.0, stderr=0.0)
        undefined = Estimate(value=math.nan, stderr=math.nan)
        spent = operator.matvecs - before
        return SpectralMoments(
            trace=zero, frobenius_norm=zero, effective_rank=undefined, matvecs=spent
        )
    inside = torch.zeros(2, dtype=torch.float64)  # Σ ⟨q,Hq⟩ and Σ ‖Hq‖² over the subspace
    for i in range(len(basis)):
        q = basis.vector(i)
        image = operator(q)
        inside += torch.tensor([dot(q, image), dot(image, image)], dtype=torch.float64)
    samples = []
    for _ in range(matvecs - 2 * sketch if len(basis) < operator.size else 0):
        g = random_like(like, generator, "signs")
        g = add(g, basis.project(g), -1.0)
        image = operator(g)
        samples.append([dot(g, image), dot(image, image)])
    outside = torch.tensor(samples or [[0.0, 0.0]] * 2, dtype=torch.float64)  # (probes, 2)
    return _moments(inside + outside, operator.matvecs - before)


@checked
def trace(operator: LinearOperator, *, generator: torch.Generator, matvecs: int = 48) -> Estimate:
    """tr H by Hutch++ with its standard error; see `spectral_moments`.

    Example:
        >>> from eqtoolbox.linalg import MatrixOperator
        >>> H = MatrixOperator(torch.eye(3))
        >>> round(trace(H, generator=torch.Generator().manual_seed(0)).value, 5)
        3.0
    """
    return spectral_moments(operator, generator=generator, matvecs=matvecs).trace


def _moments(samples: Tensor, matvecs: int) -> SpectralMoments:
    first, second = samples.mean(dim=0).tolist()
    size = math.sqrt(max(second, 0.0))
    # linearised: d(T²/F) = (2T/F) dT − (T/F)² dF, and d√F = dF / 2√F
    ratio = first / second
    rank = samples[:, 0] * 2 * ratio - samples[:, 1] * ratio**2
    return SpectralMoments(
        trace=mean(samples[:, 0].tolist()),
        frobenius_norm=Estimate(
            value=size, stderr=mean(samples[:, 1].tolist()).stderr / (2 * size)
        ),
        effective_rank=Estimate(value=first * ratio, stderr=mean(rank.tolist()).stderr),
        matvecs=matvecs,
    )


def mean(samples: Sequence[float]) -> Estimate:
    """The mean of independent samples with its standard error; at least 2 samples."""
    x = torch.tensor(samples, dtype=torch.float64)
    return Estimate(value=float(x.mean()), stderr=float(x.std()) / math.sqrt(len(x)))
