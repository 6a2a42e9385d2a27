"""Discrete symmetries: units that are equal, dead, about to merge, and the laws behind it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from eqtoolbox.expect.checked import checked
from eqtoolbox.probes.collapse import collapse
from eqtoolbox.probes.covariance import Covariance, laws
from eqtoolbox.probes.engine import Engine
from eqtoolbox.probes.idle import NAMED, Idle, Silence, listed
from eqtoolbox.probes.symmetries import FoundSymmetries
from eqtoolbox.record.record import HOLDS, Mode
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.replay.thread.scope import unobserved
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.snapshot import Snapshot
from eqtoolbox.watch.state import State
from eqtoolbox.weights.orbit.approach import Approach, approaches
from eqtoolbox.weights.parameter import DiscreteSymmetry

BARE = 1.0  # graphs and copies where nothing is differentiated
EQUAL = 1e-6  # relative distance below which units count as equal, if rounding allows no less


@checked
@dataclass(frozen=True, kw_only=True)
class Discrete(Probe):
    """How near units are to the fixed points of exchanges and sign flips, and where they go.

    A fixed point of the exchange of two units has both equal, one of a sign flip has the unit
    zero: training that reaches it never leaves it by gradient flow (Yang & Ziyin 2025).

    distance: the smallest over all pairs of units of all layers of |u_i - u_j| / sqrt(|u_i|^2 +
    |u_j|^2), u all that a unit owns: 0 equal, about 1 unrelated; for sign flips the smallest
    |u_i| over the root mean square of its layer. Running statistics that a normalisation reads move
    along and count in no distance: they follow the parameters. duplicates: pairs at distance 0 to
    rounding.
    dead: units that do nothing on this batch nor on the four before it (three at least, and 30
    samples; `not_converged` until so many were seen); the note names them and says why.
    dead_share: of each layer that has any.

    For the nearest few, if nearer than `near`, at the symmetric point P theta, with H the Hessian
    there and gamma the weight decay: margin, the smallest eigenvalue of (I-P)(H + gamma)(I-P) on
    the antisymmetric directions. Deviations z obey dz/dt = -(H + gamma) z, so that above 0 the
    units merge (or die) from every direction near by, and below 0 they part. Adaptive optimizers
    have it in their own metric, not_applicable where that follows the units (`probes.pull.Pull`).
    shrinking: -d log |z| of the actual step, whatever the optimizer.

    With `laws`, on one random element of all groups, of each where that fails, and a random
    direction: first_order, |T^T g(T theta) - g(theta)| / |g|; second_order,
    |T^T H(T theta) T v - H(theta) v| / |H v|; and at the symmetric points block,
    |(H T - T H) v| / |H v|. The floor repeats the measurement at parameters moved by one unit in
    the last place.

    Args:
        pairs: how many of the nearest get the Hessian part.
        near: distance beyond which the symmetric point says nothing about the units.
        laws: whether the laws are tested.
        max_matvecs: Hessian products at most, for each margin.
        engine: how Hessian products are made; see `eqtoolbox.probes.engine.Engine`.

    References:
        Simsek et al. 2021 (arXiv 2105.12221); Yang & Ziyin 2025 (arXiv 2512.21447).

    Example:
        >>> Discrete(pairs=0, laws=False).headline  # distances and dead units: no Hessian
        'distance'
    """

    name: ClassVar[str] = "discrete"
    headline: ClassVar[str] = "distance"
    mode: ClassVar[Mode] = "train"
    graphs: ClassVar[float] = 1.5
    copies: ClassVar[float] = 6.0
    state: ClassVar[type[State]] = Silence

    pairs: int = 3
    near: float = 0.3
    laws: bool = True
    max_matvecs: int = 100
    engine: Engine = field(default_factory=Engine, repr=False)

    def __post_init__(self) -> None:
        if self.pairs < 0 or self.max_matvecs < 1 or not 0 <= self.near <= math.sqrt(2):
            raise ValueError(
                "discrete needs pairs >= 0, max_matvecs >= 1 and near from 0 to sqrt(2), got "
                f"pairs={self.pairs}, max_matvecs={self.max_matvecs}, near={self.near}"
            )
        if not self.pairs and not self.laws:
            for name in ("graphs", "copies"):
                object.__setattr__(self, name, BARE)

    def measure(
        self, snapshot: Snapshot, reference: Silence, rng: torch.Generator
    ) -> Iterator[Measurement]:
        differentiates = self.pairs > 0 or self.laws
        if differentiates:
            self.engine.test(snapshot)  # where it refuses, nothing is measured
        families = FoundSymmetries.of(snapshot).discrete()
        eps = max(torch.finfo(p.dtype).eps for p in snapshot.before.values())
        floor = max(eps * math.sqrt(snapshot.step + 1), EQUAL / HOLDS)  # a walk of roundings
        nearest: list[Approach] = []
        for family, members in families.items():
            found, equal = _nearest(members, snapshot, max(self.pairs, NAMED), HOLDS * floor)
            yield from _distances(family, found, equal, floor)
            nearest += found
        noise: float | None = None
        gradient = snapshot.whole_gradient
        if differentiates:
            yield from self.engine.report(snapshot)
        if self.laws:
            covariance = Covariance(snapshot, self.engine, rng)
            gradient, noise = covariance.gradient, covariance.floors[1]
            yield from laws(covariance, families, rng)
        gradient = gradient or _gradient(snapshot)
        idle = Idle.of(
            families, snapshot.objective, snapshot.before, gradient, reference, snapshot.world
        )
        yield from idle.measurements()
        nearest.sort(key=lambda a: a.distance)
        for rank, approach in enumerate(nearest[: self.pairs], start=1):
            if approach.distance <= self.near:
                yield from collapse(
                    snapshot, self.engine, approach, str(rank), noise, self.max_matvecs, rng
                )


@unobserved()
def _nearest(
    members: list[DiscreteSymmetry], snapshot: Snapshot, count: int, limit: float
) -> tuple[list[Approach], int]:
    """The nearest reflections of a family, and how many are within `limit`."""
    found, equal = [], 0
    for member in members:
        some, inside = approaches(member, snapshot.before, count, limit)
        found += some
        equal += inside
    return sorted(found, key=lambda a: a.distance)[:count], equal


def _distances(
    family: str, nearest: list[Approach], equal: int, floor: float
) -> Iterator[Measurement]:
    if not nearest:
        why = "every unit is zero"
        yield Measurement("distance", math.nan, family, status="not_applicable", note=why)
        return
    first = nearest[0]
    yield Measurement("distance", first.distance, family, floor=floor, note=first.label)
    if family == "permutation":
        same = [a.label for a in nearest[:equal]]
        facts = {"units": same[:NAMED]}
        yield Measurement("duplicates", float(equal), note=listed(same, equal), facts=facts)


def _gradient(snapshot: Snapshot) -> Parameters:
    found = snapshot.slope(snapshot.objective)
    return {n: found[n] if n in found else torch.zeros_like(p) for n, p in snapshot.before.items()}
