"""The laws of parameter symmetries: orders 0, 1 and 2, and the curvature they predict."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from eqtoolbox.expect.checked import checked
from eqtoolbox.linalg.vectors import dot, norm
from eqtoolbox.probes.engine import Engine
from eqtoolbox.probes.epsilon import explained
from eqtoolbox.probes.epsilon import pull as epsilon_pull
from eqtoolbox.probes.floors import Floors
from eqtoolbox.probes.law import Elements, FirstOrder, Laws, Members
from eqtoolbox.probes.law_rounding import LawRounding
from eqtoolbox.probes.law_rows import dimension, known_of, residual, resting
from eqtoolbox.probes.light_laws import lightly
from eqtoolbox.probes.portion import on_few
from eqtoolbox.probes.right_sides import RightSides
from eqtoolbox.probes.symmetries import FoundSymmetries
from eqtoolbox.probes.zeroth_order import ZerothOrder
from eqtoolbox.record.record import Mode, verdict
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
    (`floor_of_step`), on some of a large batch (`samples_used`): they are true of any samples.
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
    copies: ClassVar[float] = 10.5
    lightens: ClassVar[bool] = True
    light_first: ClassVar[bool] = True
    on_any_part: ClassVar[bool] = True

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
        rounding = LawRounding(engine=self.engine, snapshot=snapshot, here=here, rng=rng)
        elements = here.drawn(families, rng)
        rows: list[Measurement] = []
        if snapshot.light and floors.kept:
            rows = [*lightly(rounding, families, elements, floors)]
        if rows and all(row.verdict in (None, "holds") for row in rows):
            yield from rows
        else:
            floors.begin(snapshot.step)
            for row in _whole(rounding, families, symmetries, elements):
                floors.keep(snapshot.step, row)
                yield row
        if why is not None:
            raise why

    def _floors(self, snapshot: Snapshot, few: bool) -> Floors:
        """The last floors of this loss, on few samples or the batch; none before the first."""
        about = snapshot.identity, self.engine.memory, self.engine.precision, self.engine.way, few
        return snapshot.shared.get("floors", about, Floors, Floors.restored)


def _whole(
    rounding: LawRounding, families: Members, symmetries: Members, elements: Elements
) -> Iterator[Measurement]:
    """Every number, and the floors anew."""
    here, objective, snapshot = rounding.here, rounding.objective, rounding.snapshot
    sides = RightSides(objective, here, families, elements)
    scale = here.curvature_scale()
    here.release()  # one graph at a time
    rounding.of_second(sides)
    yield from sides.refused()
    noise = rounding.of_first(sides)
    if snapshot.training is snapshot.measured:
        pull = epsilon_pull(objective, here.params, sides.slopes) if sides.epsilon else None
        snapshot.told[FirstOrder.__name__] = FirstOrder(max(noise, sides.first_noise), pull)
    zeroth = ZerothOrder(objective, here.params, rounding.amount, rounding.rng)
    yield from _laws(here, scale, sides, zeroth, noise)
    if symmetries:
        yield _bracket(here, symmetries, elements, rounding.rng, noise)


def _laws(
    here: Laws, scale: float, sides: RightSides, zeroth: ZerothOrder, gradient_noise: float
) -> Iterator[Measurement]:
    """The numbers of every family that moves something; `scale` is that of the curvature."""
    first_noise = max(gradient_noise, sides.first_noise)
    eps = max(torch.finfo(p.dtype).eps for p in here.params.values())
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
        size, total = here.size * length, law.total(eps, scale)
        second_noise = max(sides.noise[family] / total, eps)
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
    draws = here.drawn(families, rng)
    one, two = ([c for family in families for c in of[family]] for of in (elements, draws))
    tangent, pulled = here.terms(members, one)
    other = here.tangent(members, two)
    gap, length, lengths = dot(pulled, other), norm(tangent), norm(other)
    scale = norm(pulled) * lengths + here.size * (length + lengths)
    del pulled, other  # no two of both at once
    pulled = here.pulled(members, two)
    gap, scale = abs(dot(pulled, tangent) - gap), scale + norm(pulled) * length
    known = max([m.residual for m in members if m.status == "approximate"], default=0.0)
    floor = max(noise, 3 * known)
    value = gap / max(scale, 1e-300)
    return Measurement("bracket", value, floor=floor, verdict=verdict(value, floor))
