"""Curvature: the sharpest directions, what the optimizer can bear, and what lies in them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch

from eqtoolbox.expect.bounds import takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.deadline import now
from eqtoolbox.linalg import EigenResult, preconditioned, top_eigenpairs
from eqtoolbox.linalg.warm import WarmStart
from eqtoolbox.probes.alignment import along, decrease, of_symmetries, overlaps, turn
from eqtoolbox.probes.critical import CriticalSharpness
from eqtoolbox.probes.engine import Engine
from eqtoolbox.probes.gauss_newton_share import gauss_newton_share
from eqtoolbox.probes.operators import DifferentiatedOperator
from eqtoolbox.probes.orbit_free import ACROSS, orbit_free_sharpness
from eqtoolbox.probes.saturated import despite_rounding
from eqtoolbox.probes.secondary import secondary
from eqtoolbox.probes.stability import moving, stability_scale
from eqtoolbox.probes.top_space import QUICK, TopSpace, quickly
from eqtoolbox.record.record import Mode, Status
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.snapshot import TIMES, NotApplicable, Snapshot
from eqtoolbox.watch.state import State

# Adam's first metrics amplify the rounding of H where a gradient is zero; the residual tells
AMPLIFIED = 0.1
MOST = 10_000  # directions
REUSED = 2_000_000  # parameters up to which the last directions are kept unless asked
BESIDE, CHAIN = 10.0, 6.5  # copies beside rows and pairs, and those of two rows with all beside
SEARCH = 0.7  # part of the time for the sharpest directions; the rest is for the optimizer's metric
Reuse = Literal["small", "always", "never"]
ScaleRule = Annotated[Callable[[Snapshot], Parameters], takes(1, "of a snapshot")]


@checked
@dataclass(frozen=True, kw_only=True)
class Curvature(Probe):
    """Top-k and smallest eigenvalues of the Hessian, with true residuals, and what lies in them.

    sharpness: the largest eigenvalue. stability: the largest curvature over what the optimizer in
    use can bear, per parameter group and preconditioned (`eqtoolbox.probes.stability`): sharpness
    * lr / 2 for plain SGD; above 1 its steps are unstable along the sharpest direction.
    gradient_overlap, update_overlap, momentum_overlap, symmetry_overlap: share of their energy in
    the span of the k sharpest directions (Gur-Ari et al. 2018, arXiv 1812.04754).
    gradient_rayleigh, update_rayleigh: curvature along them. predicted_decrease and
    actual_decrease: of the loss, by the step. With `split`, gauss_newton_share: v^T G v / lambda at
    the top eigenvector v, G the Gauss-Newton matrix. With `angles`, turn: the largest principal
    angle between the top spaces of two measurements. With `orbit_free`, orbit_free_sharpness: the
    largest curvature across the orbits of all parameter symmetries, at the orbit's canonical point
    (`eqtoolbox.probes.orbit_free`), which moving along the orbits does not change.

    An eigenvalue's `stderr` is its residual |H v - lambda v|; `not_converged` marks one whose
    relative residual is above `tol`. The fact `confirmed` of the sharpness says whether a fresh
    random chain has looked for what the search may have missed: with `reuse` at every fourth
    measurement, and between them a direction that is kept with the others, half of it random. Light
    measurements, of the sharpness alone, begin from a random vector each. Under a budget no search
    takes more than about a second: what it has by then is said, `not_converged` where that is so,
    and the next one goes on from it; where the whole would not be over the first one is light.

    Args:
        k: how many of the sharpest directions.
        smallest: also the most negative curvature.
        tol: residual over the largest |eigenvalue| from which one has converged.
        max_matvecs: Hessian products at most.
        rows: vectors of the model's size that a search keeps in memory at most, at least k + 2, and
            one more with `smallest`; 0: six more than that; 2: light measurements of k=1 alone.
        split: the Gauss-Newton part of the sharpness.
        orbit_free: sharpness across the orbits; costs a second eigenvalue.
        reuse: begin with the directions of the last measurement, which are held until then;
            "small": where the model has at most 2 million parameters and `rows` sets no limit.
        angles: keep the top space for the next measurement and the checkpoint.
        stability_scale: S of any optimizer, from a snapshot.
        engine: how Hessian products are made; see `eqtoolbox.probes.engine.Engine`.

    Example:
        >>> Curvature(k=3, angles=True).headline
        'sharpness'
    """

    name: ClassVar[str] = "curvature"
    headline: ClassVar[str] = "sharpness"
    sharded: ClassVar[bool] = True
    mode: ClassVar[Mode] = "train"
    graphs: ClassVar[float] = 4.0
    lightens: ClassVar[bool] = True
    whole: ClassVar[float] = 50.0
    copies: ClassVar[float] = 30.0
    state: ClassVar[type[State]] = TopSpace

    k: int = 5
    smallest: bool = True
    tol: float = 1e-2
    max_matvecs: int = 100
    rows: int = 0
    split: bool = False
    orbit_free: bool = False
    reuse: Reuse = "small"
    angles: bool = False
    stability_scale: ScaleRule = field(default=stability_scale, repr=False)
    engine: Engine = field(default_factory=Engine, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MOST or self.max_matvecs < 1 or not 0 < self.tol < 1:
            raise ValueError(
                f"curvature needs k >= 1, at most {MOST}, max_matvecs >= 1 and tol > 0, below 1, "
                f"got k={self.k}, max_matvecs={self.max_matvecs}, tol={self.tol}"
            )
        least = (pairs := self.k + self.smallest) + 2
        if self.rows and self.rows < least and (self.rows, pairs) != (2, 1):
            raise ValueError(f"curvature needs rows >= {least} for k={self.k}, got {self.rows}")
        rows = self.rows or pairs + 8
        object.__setattr__(self, "copies", CHAIN if rows == 2 else rows + pairs + BESIDE)

    def leaner(self) -> "Curvature | None":
        """With as few vectors as its pairs need, then of one, then of its value alone."""
        for k, smallest, rows in ((self.k, self.smallest, 0), (1, False, 0), (1, False, 2)):
            rows = rows or k + smallest + 2
            if (k, smallest) != (self.k, self.smallest) or (self.rows or math.inf) > rows:
                return replace(self, k=k, smallest=smallest, rows=rows)
        return None

    @property
    def _limits(self) -> dict[str, Any]:
        return {"tol": self.tol, "max_matvecs": self.max_matvecs, "max_vectors": self.rows or None}

    def instead(self) -> CriticalSharpness:
        """By forwards alone."""
        return CriticalSharpness()

    def measure(
        self, snapshot: Snapshot, reference: TopSpace, rng: torch.Generator
    ) -> Iterator[Measurement]:
        operator = self.engine.operator(snapshot)
        yield from self.engine.report(snapshot)
        if snapshot.light or self.rows == 2:
            yield from self._light(snapshot, operator, reference, rng)
            return
        smallest = self.smallest and operator.size > 1
        k = min(self.k, operator.size - smallest)
        ends = now() + snapshot.seconds
        asked = k, smallest, reference, rng, SEARCH * snapshot.seconds
        at = operator, self.engine.objective(snapshot), snapshot.before
        found = despite_rounding(lambda: self._search(operator, *asked), *at)
        yield from self._eigenvalues(found, k)
        left = max(ends - now(), 0.0)
        bears = self._stability(snapshot, operator, found, reference, rng, left)
        yield from secondary(bears, "stability")
        top = found.vectors[:k]
        status: Status = "ok" if bool(found.converged[:k].all()) else "not_converged"
        gradient = snapshot.whole_gradient or operator.gradient
        yield from overlaps(snapshot, gradient, top, status)
        yield from secondary(of_symmetries(snapshot, top, rng, status), "symmetry_overlap")
        yield from secondary(along(operator, gradient), "gradient_rayleigh")
        decreases = "update_rayleigh", "predicted_decrease", "actual_decrease"
        yield from secondary(decrease(snapshot, operator), *decreases)
        if self.angles:
            yield from secondary(turn(top, reference.top, status), "turn")
            reference.top = top
        if self.split:
            yield from secondary(gauss_newton_share(snapshot, found), "gauss_newton_share")
        if self.orbit_free and not snapshot.world.sharded:  # it moves whole parameters
            budget = self.tol, self.max_matvecs
            yield from secondary(orbit_free_sharpness(snapshot, self.engine, *budget, rng), ACROSS)

    def _search(
        self,
        operator: DifferentiatedOperator,
        k: int,
        smallest: bool,
        known: TopSpace,
        rng: torch.Generator,
        seconds: float,
    ) -> EigenResult:
        """The outermost eigenpairs, from where the last search ended if that is kept."""
        start = WarmStart(vectors=known.vectors, guard=known.guard) if known.vectors else None
        found = top_eigenpairs(
            operator,
            k,
            which="both" if smallest else "largest",
            **self._limits,
            generator=rng,
            start=start,
            confirm=0 if start is not None and known.quick < QUICK else None,
            seconds=seconds,
        )
        if self._reuses(operator):
            known.vectors, known.guard = found.vectors, found.guard
            known.quick = quickly(found, known.quick)
        return found

    def _reuses(self, operator: DifferentiatedOperator) -> bool:
        small = self.reuse == "small" and not self.rows and operator.size <= REUSED
        return small or self.reuse == "always"

    def _light(
        self,
        snapshot: Snapshot,
        operator: DifferentiatedOperator,
        known: TopSpace,
        rng: torch.Generator,
    ) -> Iterator[Measurement]:
        """Sharpness alone, and stability if it follows.

        From a random vector: no fresh chain follows, without which a search that goes on from known
        directions may miss, time after time, what grew orthogonal to them.
        """
        within = {"seconds": snapshot.seconds, **self._limits}
        search = partial(top_eigenpairs, operator, 1, generator=rng, confirm=0, **within)
        found = despite_rounding(search, operator, self.engine.objective(snapshot), snapshot.before)
        yield self._sharpness(found)
        if not found.converged[0] and not known.vectors and self._reuses(operator):
            known.vectors, known.guard, known.quick = found.vectors, found.guard, QUICK
        if snapshot.optimizer == "SGD":
            bears = self._stability(snapshot, operator, found, known, rng, snapshot.seconds)
            yield from secondary(bears, "stability")

    def _eigenvalues(self, found: EigenResult, k: int) -> Iterator[Measurement]:
        for i, value in enumerate(found.values.tolist()):
            quantity, target = ("eigenvalue", str(i + 1)) if i < k else ("smallest", "")
            residual, converged = float(found.residuals[i]), bool(found.converged[i])
            note = "" if converged else f"not converged within {found.matvecs} products"
            yield Measurement(
                quantity, value, target, stderr=residual, status=_status(converged), note=note
            )
        yield self._sharpness(found)
        yield Measurement("asymmetry", found.asymmetry)

    def _sharpness(self, found: EigenResult) -> Measurement:
        return Measurement(
            "sharpness",
            float(found.values[0]),
            stderr=float(found.residuals[0]),
            status=_status(bool(found.converged[0])),
            matvecs=found.matvecs,
            facts={"confirmed": found.confirmed},
        )

    def _stability(
        self,
        snapshot: Snapshot,
        operator: DifferentiatedOperator,
        found: EigenResult,
        known: TopSpace,
        rng: torch.Generator,
        seconds: float,
    ) -> Iterator[Measurement]:
        """Largest eigenvalue of S^1/2 H S^1/2, times what a loop leaves of the gradient."""
        times = snapshot.told.get(TIMES, 1.0)
        facts = {} if times == 1.0 else {"times": times}
        scale = self.stability_scale(snapshot)
        moved, factors = moving(scale, snapshot.world)
        if len(moved) == len(scale) and len(factors) == 1 and snapshot.optimizer == "SGD":
            factor = times * factors.pop()
            yield Measurement(
                "stability",
                factor * float(found.values[0]),
                stderr=factor * float(found.residuals[0]),
                status=_status(bool(found.converged[0])),
                note=f"sharpness * {factor:.3g}",
                facts=facts | ({"factor": factor} if math.isfinite(factor) else {}),
            )
            return
        if not moved:
            raise NotApplicable("the learning rate is zero")
        felt = preconditioned(
            operator.restrict(*moved), {n: 1 / s for n, s in moved.items()}, accuracy=AMPLIFIED
        )
        start = WarmStart(vectors=known.felt) if known.felt else None
        top = top_eigenpairs(
            felt,
            1,
            **self._limits,
            generator=rng,
            start=start,
            confirm=0 if start is not None and known.felt_quick < QUICK else None,
            seconds=seconds,
        )
        if self._reuses(operator):
            known.felt = top.vectors[:1]
            known.felt_quick = quickly(top, known.felt_quick)
        yield Measurement(
            "stability",
            times * float(top.values[0]),
            stderr=times * float(top.residuals[0]),
            status=_status(bool(top.converged[0])),
            matvecs=top.matvecs,
            note=f"Hessian in the metric of {snapshot.optimizer}",
            facts=facts | {"metric": snapshot.optimizer},
        )


def _status(converged: bool) -> Status:
    return "ok" if converged else "not_converged"
