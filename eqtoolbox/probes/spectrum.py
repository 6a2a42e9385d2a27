"""Spectrum: what the whole Hessian looks like, not only its ends."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from eqtoolbox.expect.checked import checked
from eqtoolbox.linalg import LinearOperator, SpectralMoments, spectral_density, spectral_moments
from eqtoolbox.linalg.trace import Estimate
from eqtoolbox.probes.engine import Engine
from eqtoolbox.record.record import Mode
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.snapshot import Snapshot

BESIDE = 7.0  # copies of the parameters beside the rows: leaves, gradient, products, what is next


@checked
@dataclass(frozen=True, kw_only=True)
class Spectrum(Probe):
    """Trace, Frobenius norm, effective rank tr^2 / |H|_F^2, negative and outlying eigenvalues.

    Stochastic estimates with their standard errors; `trace/<layer>` for each layer on request.
    `density` is the extent of the spectrum; its vector holds nodes and weights of the quadrature,
    (2, probes * steps), and the report draws them as a map of the density over training.

    Args:
        matvecs: Hessian products for trace and norm.
        probes: random vectors of the density.
        steps: Lanczos steps of each.
        layers: also the trace of each layer's block.
        rows: vectors of the model's size in memory at most, at least 2; the density then takes as
            many steps and no more. 0 sets no limit: it takes `steps`.
        engine: how Hessian products are made; see `eqtoolbox.probes.engine.Engine`.

    Example:
        >>> Spectrum(probes=2, steps=12).headline
        'trace'
    """

    name: ClassVar[str] = "spectrum"
    headline: ClassVar[str] = "trace"
    sharded: ClassVar[bool] = True
    mode: ClassVar[Mode] = "train"
    graphs: ClassVar[float] = 4.0
    copies: ClassVar[float] = 31.0

    matvecs: int = 48
    probes: int = 4
    steps: int = 24
    layers: bool = False
    rows: int = 0
    engine: Engine = field(default_factory=Engine, repr=False)

    def __post_init__(self) -> None:
        if self.matvecs < 6 or self.probes < 2 or self.steps < 2:
            raise ValueError(
                f"spectrum needs matvecs >= 6, probes >= 2 and steps >= 2, got {self.matvecs}, "
                f"{self.probes}, {self.steps}"
            )

        if self.rows and self.rows < 2:
            raise ValueError(f"spectrum needs rows >= 2, got {self.rows}; 0 sets no limit")
        most = max(self.matvecs // 3, self.steps)  # of both stages, one after the other
        object.__setattr__(self, "copies", min(most, self.rows or most) + BESIDE)

    def measure(
        self, snapshot: Snapshot, reference: None, rng: torch.Generator
    ) -> Iterator[Measurement]:
        operator = self.engine.operator(snapshot)
        yield from self.engine.report(snapshot)
        yield from self._moments(operator, rng)
        steps = min(self.steps, self.rows or self.steps)
        density = spectral_density(operator, probes=self.probes, steps=steps, generator=rng)
        for quantity, count in (("negative", density.negative()), ("outlying", density.outlying())):
            yield Measurement(quantity, count.value, stderr=count.stderr, unit="eigenvalues")
        low, high = density.extent
        quadrature = torch.stack([density.nodes, density.weights / self.probes]).flatten(1)
        yield Measurement("density", high - low, vector=quadrature.numpy())
        if self.layers:
            for layer in dict.fromkeys(name.rpartition(".")[0] for name in snapshot.before):
                pattern = f"{layer}.*" if layer else "*"
                block = operator.restrict(pattern)
                found = self._spectral_moments(block, rng)
                yield _estimate("trace", found.trace, layer or "model")

    def _spectral_moments(self, operator: LinearOperator, rng: torch.Generator) -> SpectralMoments:
        return spectral_moments(
            operator, generator=rng, matvecs=self.matvecs, rows=self.rows or None
        )

    def _moments(self, operator: LinearOperator, rng: torch.Generator) -> Iterator[Measurement]:
        found = self._spectral_moments(operator, rng)
        yield _estimate("trace", found.trace, matvecs=found.matvecs)
        yield _estimate("frobenius_norm", found.frobenius_norm)
        yield _estimate("effective_rank", found.effective_rank)


def _estimate(
    quantity: str, estimate: Estimate, target: str = "", matvecs: int | None = None
) -> Measurement:
    stderr = estimate.stderr if math.isfinite(estimate.stderr) else None
    return Measurement(quantity, estimate.value, target, stderr=stderr, matvecs=matvecs)
