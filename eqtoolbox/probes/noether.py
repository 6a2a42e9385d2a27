"""The laws of parameter symmetries: orders 0, 1 and 2, and the curvature they predict."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from eqtoolbox.expect.checked import checked
from eqtoolbox.linalg.curvature import hessian
from eqtoolbox.linalg.vectors import add, dot, norm
from eqtoolbox.probes.engine import Engine
from eqtoolbox.probes.epsilon import explained
from eqtoolbox.probes.epsilon import pull as epsilon_pull
from eqtoolbox.probes.floors import Floors
from eqtoolbox.probes.law import (
    Elements,
    FirstOrder,
    Laws,
    Members,
    afar,
    in_float64,
    moved_by,
)
from eqtoolbox.probes.law import rounding as rounding_of
from eqtoolbox.probes.law_rows import dimension, known_of, residual, resting
from eqtoolbox.probes.quarter import on_few
from eqtoolbox.probes.right_sides import RightSides
from eqtoolbox.probes.self_test import ROUGH
from eqtoolbox.probes.symmetries import FoundSymmetries
from eqtoolbox.probes.zeroth_order import ZerothOrder
from eqtoolbox.record.record import HOLDS, Mode, verdict
from eqtoolbox.replay.gradient import replayed_gradient
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.memory import samples
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.rows import on_part
from eqtoolbox.watch.snapshot import NotApplicable, Snapshot


@checked
@dataclass(frozen=True, kw_only=True)
class Noether(Probe):
    """Residuals of L(T theta) = L, g.K = 0 and H K + (DK)^T g = 0 along a random element a family.

    The laws of order 1 and 2 are linear in the generator, so that one Hessian product with a random
    element checks all families whose laws are exact: in exact arithmetic a broken member escapes
    with probability zero. What they lack together is what each is said to lack at order 2, and
    rounding of all is its floor; where that breaks, and where a law is approximate, a family is
    measured by itself. Against a floor f, members whose laws fail by d together (the norm of their
    residuals, on the residual's scale) escape with probability
    P(|c d| < f) = erf(f / (d sqrt 2)) <= 0.8 f / d for Gaussian c, and by chance at the next
    measurement with the square of that. Normalised by |g||K| and by
    |HK| + |(DK)^T g| + sqrt(eps) |H| |K|, where the last term keeps rounding over rounding from
    reading as a violation (translations: every term of their law vanishes).

    `zeroth_order`: |L(T_c theta) - L(theta)| / |L|, or |f(T_c theta) - R_c f| / |f|, by one finite
    transformation along the same element. To leading order in c it is |c d| where the first-order
    law is broken, with the escape above, and |c^T q c| where only the second is: a broken member
    of size q escapes with probability P(q c^2 < f) <= 0.8 sqrt(f / q). It sees what derivatives do
    not: kinks and dead units that wake up at a distance.

    `bracket` is g . [K, K'] over the size of its terms for two random elements over all
    families: brackets of symmetries are symmetries. `sharpness_bound` is the largest predicted
    curvature along a family: the largest eigenvalue of the Hessian is at least that.

    Equivariances, which move the outputs too, obey g.K = c and H K + (DK)^T g = grad c instead,
    with c read off the outputs (`eqtoolbox.probes.implicit_bias`).

    Where the epsilon of a normalisation makes a symmetry approximate, it predicts what the laws
    lack, g.K = p and H K + (DK)^T g = grad p (`eqtoolbox.weights.epsilon`): `slope` and
    `predicted_slope` are g.K and p over |g||K|, `epsilon` and `epsilon_second_order` what p leaves
    of both laws. These hold where epsilon is all; the plain residuals get p as their floor.

    `rayleigh` is the measured curvature K^T H K / K^T K along the symmetry, and
    `predicted_rayleigh` = -g^T (DK) K / K^T K what the gradient alone says it is (for
    an equivariance with K.grad c added, for an approximate symmetry with K.grad p).

    Floors repeat the measurement at other parameters: one rounding away for gradient and loss, far
    enough for independent rounding errors for the second order (`eqtoolbox.probes.law.afar`). A
    law that fails by these is compared with itself in float64 before it is said to be broken: few
    parameters that are rounded alike show less than the sums inside the loss.

    A light measurement has the laws alone, beside floors of the last one that found them
    (`floor_of_step`), on a quarter of a large batch (`samples_used`): they are true of any samples.
    Where a law fails by these, what epsilon predicts is asked anew, then floors of its order; if
    those are not it, all is.

    Args:
        engine: how Hessian products are made; see `eqtoolbox.probes.engine.Engine`.

    Example:
        >>> Noether().headline
        'second_order'
    """

    name: ClassVar[str] = "noether"
    headline: ClassVar[str] = "second_order"
    mode: ClassVar[Mode] = "train"
    graphs: ClassVar[float] = 4.0
    copies: ClassVar[float] = 20.0
    lightens: ClassVar[bool] = True
    light_first: ClassVar[bool] = True

    engine: Engine = field(default_factory=Engine, repr=False)

    def measure(
        self, snapshot: Snapshot, reference: None, rng: torch.Generator
    ) -> Iterator[Measurement]:
        yield from self.engine.report(snapshot)
        few = on_few(snapshot) if snapshot.light else snapshot
        part, count = few is not snapshot, samples(few.measured)
        for row in self._measured(few, self._floors(few, part), rng):
            yield on_part(row, f"on {count} samples of the batch", count) if part else row

    def _measured(
        self, snapshot: Snapshot, floors: Floors, rng: torch.Generator
    ) -> Iterator[Measurement]:
        found = FoundSymmetries.of(snapshot)
        try:
            symmetries, why = found.by_family(), None
        except NotApplicable as reason:
            symmetries, why = {}, reason
        families = {**found.equivariances(), **symmetries}
        here = Laws(snapshot.before, self.engine.operator(snapshot))
        elements = here.drawn(families, rng)
        rows: list[Measurement] = []
        if snapshot.light and floors.kept:
            rows = [*self._light(snapshot, here, families, elements, floors, rng)]
        if rows and all(row.verdict in (None, "holds") for row in rows):
            yield from rows
        else:
            floors.begin(snapshot.step)
            for row in self._whole(snapshot, here, families, symmetries, elements, rng):
                floors.keep(snapshot.step, row)
                yield row
        if why is not None:
            raise why

    def _light(
        self,
        snapshot: Snapshot,
        here: Laws,
        families: Members,
        elements: Elements,
        floors: Floors,
        rng: torch.Generator,
    ) -> Iterator[Measurement]:
        """What every law lacks, beside floors that were found before."""
        objective = self.engine.objective(snapshot)
        sides = RightSides(objective, here, families, elements, asks=False)
        scale = here.curvature_scale()
        here.release()
        zeroth = ZerothOrder(objective, here.params, self._rounding(snapshot), rng)
        yield from sides.refused()

        moving = {f: m for f, m in sides.families.items() if sides.laws[f].length > 0}
        known = {f: floors.of("zeroth_order", f) for f in moving}
        zeroths = zeroth.of_all(moving, elements, {}, known)
        totals = {f: sides.laws[f].total(_eps(here.params), scale) for f in moving}

        def residuals(family: str) -> list[Measurement]:
            law, rates = sides.laws[family], sides.rates.get(family)
            size, total = here.size * law.length, totals[family]
            sharing = [f for f in sides.sharing(family) if f in totals]
            second = max(floors.of("second_order", f) * totals[f] for f in sharing)
            first, zero = floors.of("first_order", family), zeroths[family]
            if rates is not None:  # asked of epsilon since
                of = sides.families[family], elements[family]
                zero = zeroth.of(family, *of, rates, floors.of("zeroth_order", family))
            first, second = max(first, abs(law.p) / size), max(second, law.p_slope) / total
            rows = [
                zero,
                residual("first_order", family, abs(law.slope) / size, first, matvecs=0),
                residual("second_order", family, law.defect / total, second, law.matvecs),
            ]
            return [
                replace(row, facts={"floor_of_step": floors.found(row.quantity)}) for row in rows
            ]

        rows = {family: residuals(family) for family in moving}
        for family in {row.target for row in _failing(rows)}:
            if sides.asked(here.params, family):
                rows[family] = residuals(family)
        if failing := _failing(rows):
            if any(row.quantity == "zeroth_order" for row in failing):
                still = {row.target: moving[row.target] for row in failing}
                zeroths |= zeroth.of_all(still, elements, {})
            self._floors_anew(failing, floors, snapshot, here, sides, zeroths, totals, rng)
            rows = {family: residuals(family) for family in moving}
        for family in sides.laws:
            yield from dimension(family, sides.families[family])
            yield from rows[family] if family in rows else resting(family)

    def _floors_anew(
        self,
        failing: Sequence[Measurement],
        floors: Floors,
        snapshot: Snapshot,
        here: Laws,
        sides: RightSides,
        zeroths: Mapping[str, Measurement],
        totals: Mapping[str, float],
        rng: torch.Generator,
    ) -> None:
        """Find the floors of these rows at this step: rounding changes as training goes on."""
        quantities, first = {row.quantity for row in failing}, 0.0
        if "first_order" in quantities:
            first = self._first_noise(snapshot, here, sides, rng)
        if "second_order" in quantities:
            self._compare(snapshot, here, sides, rng)
        for row in failing:
            found = {
                "zeroth_order": zeroths[row.target].floor,
                "first_order": max(first, sides.first_noise),
                "second_order": sides.noise.get(row.target, 0.0) / totals[row.target],
            }
            floors.keep(snapshot.step, replace(row, floor=found[row.quantity]))

    def _whole(
        self,
        snapshot: Snapshot,
        here: Laws,
        families: Members,
        symmetries: Members,
        elements: Elements,
        rng: torch.Generator,
    ) -> Iterator[Measurement]:
        """Every number, and the floors anew."""
        objective, rounding = self.engine.objective(snapshot), self._rounding(snapshot)
        sides = RightSides(objective, here, families, elements)
        scale = here.curvature_scale()
        here.release()  # one graph at a time
        self._compare(snapshot, here, sides, rng)
        yield from sides.refused()
        noise = self._first_noise(snapshot, here, sides, rng)
        if snapshot.training is snapshot.measured:
            pull = epsilon_pull(objective, here.params, sides.slopes) if sides.epsilon else None
            snapshot.told[FirstOrder.__name__] = FirstOrder(max(noise, sides.first_noise), pull)
        zeroth = ZerothOrder(objective, here.params, rounding, rng)
        yield from _laws(here, scale, sides, zeroth, noise)
        if symmetries:
            yield _bracket(here, symmetries, elements, rng, noise)

    def _first_noise(
        self, snapshot: Snapshot, here: Laws, sides: RightSides, rng: torch.Generator
    ) -> float:
        """What rounding leaves of first-order laws, over |g||K|."""
        near = self._gradient(snapshot, moved_by(snapshot.before, self._rounding(snapshot), rng))
        noise = max(norm(add(near, here.gradient, -1.0)) / here.size, _eps(here.params))
        del near
        if any(left > HOLDS * noise for left in _left(here, sides)):
            apart = rounding_of(self.engine.objective(snapshot), here.params, here.gradient)
            noise = max(noise, norm(apart) / here.size if apart else 0.0)
        return noise

    def _compare(
        self, snapshot: Snapshot, here: Laws, sides: RightSides, rng: torch.Generator
    ) -> None:
        """Measure what rounding leaves of second-order laws; float64 judges those that fail."""
        moved = moved_by(snapshot.before, afar(self._rounding(snapshot)), rng)
        far = replace(snapshot, before=moved)
        sides.compare(Laws(far.before, self.engine.operator(far)), here)
        objective, failing = self.engine.objective(snapshot), sides.failing()
        if failing and in_float64(objective, here.params, here.gradient):
            objective = objective.to(torch.float64)
            wide = {n: p.double() for n, p in here.params.items()}
            sides.judge(failing, objective, Laws(wide, hessian(objective, wide)))

    def _floors(self, snapshot: Snapshot, few: bool) -> Floors:
        """The last floors of this loss, on few samples or the batch; none before the first."""
        about = snapshot.identity, self.engine.memory, self.engine.precision, self.engine.way, few
        return snapshot.shared.get("floors", about, Floors, Floors.restored)

    def _rounding(self, snapshot: Snapshot) -> float:
        return max(_eps(snapshot.before), self.engine.test(snapshot).coarsest)

    def _gradient(self, snapshot: Snapshot, params: Parameters) -> Parameters:
        """The gradient at other parameters, without the graph of a product where it is the same."""
        test = self.engine.test(snapshot)
        same = test.mode in ("exact", "rebuilt") and test.coarsest <= ROUGH
        if same and all(p.dtype.itemsize > 2 for p in params.values()):
            found = replayed_gradient(self.engine.objective(snapshot), params)
            return {n: found[n] if n in found else torch.zeros_like(p) for n, p in params.items()}
        return self.engine.operator(replace(snapshot, before=params)).gradient


def _eps(params: Parameters) -> float:
    return max(torch.finfo(p.dtype).eps for p in params.values())


def _failing(rows: Mapping[str, Sequence[Measurement]]) -> list[Measurement]:
    """Those of the rows of all families that do not hold."""
    return [row for of in rows.values() for row in of if row.verdict != "holds"]


def _left(here: Laws, sides: RightSides) -> Iterator[float]:
    """What every first-order law lacks, over |g| |K|."""
    for law in sides.laws.values():
        yield abs(law.slope - law.p) / max(here.size * law.length, 1e-300)


def _laws(
    here: Laws, scale: float, sides: RightSides, zeroth: ZerothOrder, gradient_noise: float
) -> Iterator[Measurement]:
    """The numbers of every family that moves something; `scale` is that of the curvature."""
    first_noise = max(gradient_noise, sides.first_noise)
    predictions = []
    moving = {f: m for f, m in sides.families.items() if sides.laws[f].length > 0}
    zeroths = zeroth.of_all(moving, sides.elements, sides.rates)
    for family, law in sides.laws.items():
        members, length = sides.families[family], law.length
        yield from dimension(family, members)
        if length == 0:
            yield from resting(family)
            continue
        yield zeroths[family]
        size, total = here.size * length, law.total(_eps(here.params), scale)
        second_noise = max(sides.noise[family] / total, _eps(here.params))
        first_left, second_left = 0.0, 0.0  # what epsilon leaves of the laws
        if family in sides.epsilon:
            yield from explained(family, law.slope, law.p, size, first_noise)
            left = law.left / total
            yield residual("epsilon_second_order", family, left, second_noise, matvecs=0)
            first_left, second_left = abs(law.p) / size, law.p_slope / total
        elif family in sides.unexplained:
            first_left = known_of(members, abs(law.slope) / size)
            second_left = first_left * (1 + scale * length / total)
        value = abs(law.slope) / size
        yield residual("first_order", family, value, max(first_noise, first_left), matvecs=0)
        value = law.defect / total
        yield residual("second_order", family, value, max(second_noise, second_left), law.matvecs)
        error = sides.noise[family] / length
        if family in sides.unexplained:
            error = max(error, first_left * scale)
        predicted = law.predicted / length**2
        yield Measurement("rayleigh", law.curvature / length**2, family, floor=error)
        yield Measurement("predicted_rayleigh", predicted, family)
        predictions.append((predicted, family))
    if predictions:
        bound, where = max(predictions)
        yield Measurement("sharpness_bound", bound, note=f"along {where} directions")


def _bracket(
    here: Laws, families: Members, elements: Elements, rng: torch.Generator, noise: float
) -> Measurement:
    """g . [K, K'] = <(DK')^T g, K> - <(DK)^T g, K'>, over the sizes of its two terms.

    Both terms may vanish (shifts commute); |g| |K| keeps their rounding from being compared.
    """
    members = [m for of in families.values() for m in of]
    one = here.terms(members, [c for family in families for c in elements[family]])
    draws = here.drawn(families, rng)
    two = here.terms(members, [c for family in families for c in draws[family]])
    gap = abs(dot(two[1], one[0]) - dot(one[1], two[0]))
    scale = norm(two[1]) * norm(one[0]) + norm(one[1]) * norm(two[0])
    scale += here.size * (norm(one[0]) + norm(two[0]))
    known = max([m.residual for m in members if m.status == "approximate"], default=0.0)
    floor = max(noise, 3 * known)
    value = gap / max(scale, 1e-300)
    return Measurement("bracket", value, floor=floor, verdict=verdict(value, floor))
