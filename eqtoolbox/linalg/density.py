"""The density of all eigenvalues, by stochastic Lanczos quadrature, with bands over the probes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.linalg.krylov import Krylov
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.trace import Estimate, mean


@dataclass(frozen=True, kw_only=True)
class DensityCurve:
    """A smoothed density on a grid; integrates to 1."""

    grid: Tensor  # (points,) float64, eigenvalues
    density: Tensor  # (points,) float64, per unit of eigenvalue
    stderr: Tensor  # (points,) float64, standard error over the probes
    width: float  # standard deviation of the Gaussian that smooths it


@dataclass(frozen=True, kw_only=True)
class Count:
    """A number of eigenvalues on one side of a threshold."""

    value: float
    stderr: float  # over the probes
    lower: float  # what the quadrature leaves open: the probes' own measure has
    upper: float  # between lower and upper there (Chebyshev-Markov-Stieltjes)
    threshold: float


@dataclass(frozen=True, kw_only=True)
class SpectralDensity:
    """Gauss quadrature of the spectral measure of each random probe."""

    nodes: Tensor  # (probes, steps) float64, Ritz values, ascending; NaN after an early end
    weights: Tensor  # (probes, steps) float64, each row sums to 1; 0 after an early end
    size: int  # n
    matvecs: int

    @property
    def exact(self) -> Tensor:
        """(probes,) bool: the chain ended early, so its quadrature has no error."""
        return self.nodes.isnan().any(dim=1)

    @property
    def extent(self) -> tuple[float, float]:
        """Smallest and largest node; inner bounds on the spectrum's ends."""
        known = self.nodes[~self.nodes.isnan()]
        return float(known.min()), float(known.max())

    def moment(self, power: int) -> Estimate:
        """Mean of λ^power over all eigenvalues; power 1 is tr H / n."""
        return mean((self.weights * self.nodes.nan_to_num() ** power).sum(dim=1).tolist())

    def curve(self, *, points: int = 200, width: float | None = None) -> DensityCurve:
        """The density smoothed by a Gaussian.

        Args:
            points: grid points, over the extent and 4 widths beyond.
            width: its standard deviation; default the extent over the number of steps, about the
                resolution of the quadrature.
        """
        low, high = self.extent
        if width is None:
            rounding = 1e-6 * max(abs(low), abs(high))
            width = max((high - low) / self.nodes.shape[1], rounding) or 1.0
        grid = torch.linspace(low - 4 * width, high + 4 * width, points, dtype=torch.float64)
        z = (grid[:, None, None] - self.nodes.nan_to_num()) / width
        kernel = torch.exp(-0.5 * z**2) / (width * math.sqrt(2 * math.pi))
        curves = (kernel * self.weights).sum(dim=2)  # (points, probes)
        stderr = curves.std(dim=1) / math.sqrt(curves.shape[1])
        return DensityCurve(grid=grid, density=curves.mean(dim=1), stderr=stderr, width=width)

    def count_below(self, threshold: float) -> Count:
        """How many eigenvalues are below `threshold`."""
        below = self.nodes < threshold  # NaN compares false
        per_probe = self.size * (self.weights * below).sum(dim=1)
        last = below.sum(dim=1, keepdim=True)  # index of the first node above
        padded = torch.nn.functional.pad(self.weights, (1, 1))
        inner = torch.where(self.exact, 0.0, self.size * padded.gather(1, last)[:, 0])
        outer = torch.where(self.exact, 0.0, self.size * padded.gather(1, last + 1)[:, 0])
        estimate = mean(per_probe.tolist())
        return Count(
            value=estimate.value,
            stderr=estimate.stderr,
            lower=float((per_probe - inner).mean()),
            upper=float((per_probe + outer).mean()),
            threshold=threshold,
        )

    def count_above(self, threshold: float) -> Count:
        """How many eigenvalues are at least `threshold`."""
        below = self.count_below(threshold)
        return Count(
            value=self.size - below.value,
            stderr=below.stderr,
            lower=self.size - below.upper,
            upper=self.size - below.lower,
            threshold=threshold,
        )

    def negative(self, tol: float = 1e-3) -> Count:
        """Eigenvalues below −tol · the largest |node|; the many near 0 have no reliable sign."""
        return self.count_below(-tol * max(abs(x) for x in self.extent))

    def outlying(self, deviations: float = 5.0) -> Count:
        """Eigenvalues above mean + deviations · standard deviation of the whole spectrum."""
        centre, square = self.moment(1).value, self.moment(2).value
        return self.count_above(centre + deviations * math.sqrt(max(square - centre**2, 0.0)))


@checked
def spectral_density(
    operator: LinearOperator,
    *,
    generator: torch.Generator,
    probes: int = 4,
    steps: int = 32,
) -> SpectralDensity:
    """φ(t) = (1/n) Σ δ(t − λ_i), from Lanczos runs started at random Gaussian probes.

    A run of m steps from v integrates every polynomial of degree 2m − 1 exactly against the
    spectral measure of v, whose mean over v is φ. Full reorthogonalisation keeps `steps` vectors.

    Args:
        operator: H.
        generator: of the probes.
        probes: runs, at least 2 so that there is an error band.
        steps: Lanczos steps per run.

    Raises:
        ValueError: too few probes or steps; the operator is not symmetric.

    Reference:
        Ubaru, Chen & Saad 2017, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature;
        Ghorbani, Krishnan & Xiao 2019, arXiv 1901.10159.

    Example:
        >>> from eqtoolbox.linalg import MatrixOperator
        >>> H = MatrixOperator(torch.diag(torch.tensor([1.0, 1.0, 5.0])))
        >>> found = spectral_density(H, generator=torch.Generator().manual_seed(0))
        >>> [round(x, 4) for x in found.extent]
        [1.0, 5.0]
    """
    if probes < 2:
        raise ValueError(f"probes must be >= 2, or there is no error band, got {probes}")
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}; 32 is a common choice")
    steps = min(steps, operator.size)
    nodes = torch.full((probes, steps), math.nan, dtype=torch.float64)
    weights = torch.zeros(probes, steps, dtype=torch.float64)
    matvecs = 0
    for i in range(probes):
        krylov = Krylov(operator, steps, generator)
        while krylov.step() and not krylov.full:
            pass
        ritz = krylov.ritz()
        nodes[i, : krylov.size] = ritz.values
        weights[i, : krylov.size] = ritz.weights[0].square()
        matvecs += krylov.matvecs
    return SpectralDensity(nodes=nodes, weights=weights, size=operator.size, matvecs=matvecs)
