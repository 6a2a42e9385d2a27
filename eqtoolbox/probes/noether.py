"""The laws of parameter symmetries: first and second order, and the curvature they predict."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from eqtoolbox.linalg.vectors import add, dot, norm, random_like, zeros_like
from eqtoolbox.objective import Parameters
from eqtoolbox.probe import Measurement, Probe
from eqtoolbox.probes.engine import DifferentiatedOperator, Engine
from eqtoolbox.probes.implicit_bias import biases
from eqtoolbox.probes.symmetries import FoundSymmetries
from eqtoolbox.record import Mode, verdict
from eqtoolbox.snapshot import NotApplicable, Snapshot
from eqtoolbox.symmetry.parameter import ContinuousSymmetry


@dataclass(frozen=True, kw_only=True)
class Noether(Probe):
    """Residuals of g.K = 0 and H K + (DK)^T g = 0 along a random element of each family.

    The laws are linear in the generator, so that one Hessian product with a random element checks
    a whole family: in exact arithmetic a broken member escapes with probability zero. Against a
    floor f, members whose laws fail by d together (the norm of their residuals, on the residual's
    scale) escape with probability P(|c d| < f) = erf(f / (d sqrt 2)) <= 0.8 f / d for Gaussian c,
    and by chance at the next measurement with the square of that. Normalised by |g||K| and by
    |HK| + |(DK)^T g| + sqrt(eps) |H| |K|, where the last term keeps rounding noise over rounding
    noise from reading as a violation (translations: every term of their law vanishes).

    `bracket` is g . [K, K'] over the size of its terms for two random elements over all
    families: brackets of symmetries are symmetries. `sharpness_bound` is the largest predicted
    curvature along a family: the largest eigenvalue of the Hessian is at least that.

    Equivariances, which move the outputs too, obey g.K = c and H K + (DK)^T g = grad c instead,
    with c read off the outputs (`eqtoolbox.probes.implicit_bias`).

    `rayleigh` is the measured curvature K^T H K / K^T K along the symmetry, and
    `predicted_rayleigh` = -g^T (DK) K / K^T K what the gradient alone says it is (for
    an equivariance with K.grad c added).

    The floor repeats the measurement at parameters moved by one unit in the last place; for
    approximate symmetries (epsilon of a normalisation) it is at least their residual when found.
    """

    name: ClassVar[str] = "noether"
    headline: ClassVar[str] = "second_order"
    mode: ClassVar[Mode] = "train"

    symmetries: FoundSymmetries = field(default_factory=FoundSymmetries, repr=False)
    engine: Engine = field(default_factory=Engine, repr=False)

    def reference(self, snapshot: Snapshot, rng: torch.Generator) -> dict[str, Any]:
        return self.engine.state(snapshot)

    def measure(
        self, snapshot: Snapshot, reference: dict[str, Any], rng: torch.Generator
    ) -> Iterator[Measurement]:
        self.engine.resume(snapshot, reference)
        yield from self.engine.report()
        here = _Laws(snapshot.before, self.engine.operator(snapshot))
        coarsest = self.engine.test.coarsest if self.engine.test else 0.0
        nudged = replace(snapshot, before=_nudged(snapshot.before, coarsest, rng))
        there = _Laws(nudged.before, self.engine.operator(nudged))
        predictions = []
        for row in self._of_equivariances(snapshot, here, there, rng):
            if row.quantity == "predicted_rayleigh":
                predictions.append((row.value, row.target))
            yield row
        families = self.symmetries.by_family(snapshot)
        elements = _drawn(families, rng)
        laws = {f: here.of(members, elements[f]) for f, members in families.items()}
        scale = here.curvature_scale()
        noise = _noise(there, families, elements, laws)
        gradient_noise = norm(add(there.gradient, here.gradient, -1.0)) / here.size
        eps = max(torch.finfo(p.dtype).eps for p in snapshot.before.values())
        small = math.sqrt(eps)
        for family, members in families.items():
            law = laws[family]
            length = norm(law.tangent)
            if length == 0:
                yield from _resting(family)
                continue
            first = abs(dot(here.gradient, law.tangent)) / (here.size * length)
            known = _known(members, first)
            yield from _dimension(family, members)
            floor = max(gradient_noise, known, eps)
            yield _residual("first_order", family, first, floor, matvecs=0)
            total = max(law.size + small * scale * length, 1e-300)
            bound = known * (total + scale * length)  # what the epsilon leaves of the law
            floor = max(max(noise * length, bound) / total, eps)
            yield _residual("second_order", family, norm(law.defect) / total, floor, matvecs=1)
            measured = dot(law.tangent, law.product) / length**2
            predicted = -dot(law.tangent, law.pulled) / length**2
            error = max(noise, known * scale)
            yield Measurement("rayleigh", measured, family, floor=error)
            yield Measurement("predicted_rayleigh", predicted, family)
            predictions.append((predicted, family))
        if predictions:
            bound, where = max(predictions)
            yield Measurement("sharpness_bound", bound, note=f"along {where} directions")
        yield _bracket(here, families, elements, rng, max(gradient_noise, eps))

    def _of_equivariances(
        self, snapshot: Snapshot, here: "_Laws", there: "_Laws", rng: torch.Generator
    ) -> Iterator[Measurement]:
        """The same numbers of equivariances: g.K = c and H K + (DK)^T g = grad c."""
        families = self.symmetries.equivariances(snapshot)
        if not families:
            return
        elements = _drawn(families, rng)
        everything = [m for members in families.values() for m in members]
        whole = [c for drawn in elements.values() for c in drawn]
        try:
            objective = self.engine.objective(snapshot)
            bias = biases(objective, here.params, families, elements)
            moved = biases(objective, there.params, {"": everything}, {"": whole})[""]
        except NotApplicable as reason:
            for family in families:
                for quantity in ("first_order", "second_order"):
                    yield Measurement(
                        quantity, math.nan, family, status="not_applicable", note=str(reason)
                    )
            return
        laws = {
            family: here.of(members, elements[family]).less(bias[family].gradient)
            for family, members in families.items()
        }
        gaps = {f: dot(here.gradient, law.tangent) - bias[f].value for f, law in laws.items()}
        other = there.of(everything, whole).less(moved.gradient)
        left, all_of_it = other.defect, max(norm(other.tangent), 1e-300)
        for law in laws.values():
            left = add(left, law.defect, -1.0)
        noise = norm(left) / all_of_it
        shifted = dot(there.gradient, other.tangent) - moved.value
        first_noise = abs(shifted - sum(gaps.values())) / (here.size * all_of_it)
        eps = max(torch.finfo(p.dtype).eps for p in snapshot.before.values())
        scale = here.curvature_scale()
        for family, members in families.items():
            yield from _dimension(family, members)
            law, length = laws[family], norm(laws[family].tangent)
            if length == 0:
                yield from _resting(family)
                continue
            first = abs(gaps[family]) / (here.size * length)
            known = _known(members, first)
            yield _residual("first_order", family, first, max(first_noise, known, eps), matvecs=0)
            total = max(law.size + math.sqrt(eps) * scale * length, 1e-300)
            floor = max(max(noise * length, known * (total + scale * length)) / total, eps)
            yield _residual("second_order", family, norm(law.defect) / total, floor, matvecs=1)
            error = max(noise, known * scale)
            measured = dot(law.tangent, law.product) / length**2
            yield Measurement("rayleigh", measured, family, floor=error)
            predicted = -dot(law.tangent, law.pulled) / length**2
            yield Measurement("predicted_rayleigh", predicted, family)


@dataclass(frozen=True)
class _Law:
    """The terms of the second-order law along one element of an algebra."""

    tangent: Parameters  # K
    product: Parameters  # H K
    pulled: Parameters  # (DK)^T g; less grad c for an equivariance
    size: float  # sum of the norms of the terms

    @property
    def defect(self) -> Parameters:
        return add(self.product, self.pulled)

    def less(self, slope: Parameters) -> "_Law":
        """The law of an equivariance, whose defect is H K + (DK)^T g - grad c."""
        pulled = add(self.pulled, slope, -1.0)
        return replace(self, pulled=pulled, size=self.size + norm(slope))


class _Laws:
    """Gradient and Hessian of an objective at one point, and the laws there."""

    def __init__(self, params: Parameters, operator: DifferentiatedOperator) -> None:
        self.params = params
        self.operator = operator
        self.gradient = operator.gradient
        self.size = max(norm(self.gradient), 1e-300)

    def of(self, members: list[ContinuousSymmetry], elements: list[Tensor]) -> _Law:
        tangent, pulled = self.terms(members, elements)
        product = self.operator(tangent)
        return _Law(tangent, product, pulled, norm(product) + norm(pulled))

    def terms(
        self, members: list[ContinuousSymmetry], elements: list[Tensor]
    ) -> tuple[Parameters, Parameters]:
        """K and (DK)^T g of the sum of these elements."""
        tangent = zeros_like(self.params)
        pulled = zeros_like(self.params)
        for member, element in zip(members, elements, strict=True):
            coefficients = element.to(self.params[member.names[0]])
            for name, part in member.tangent(self.params, coefficients).items():
                tangent[name] = tangent[name] + part
            for name, part in member.pullback(self.params, coefficients, self.gradient).items():
                pulled[name] = pulled[name] + part
        return tangent, pulled

    def curvature_scale(self) -> float:
        """|H g| / |g|: near the largest curvature once the gradient has aligned with it."""
        return norm(self.operator(self.gradient)) / self.size


def _bracket(
    here: "_Laws",
    families: dict[str, list[ContinuousSymmetry]],
    elements: dict[str, list[Tensor]],
    rng: torch.Generator,
    noise: float,
) -> Measurement:
    """g . [K, K'] = <(DK')^T g, K> - <(DK)^T g, K'>, over the sizes of its two terms.

    Both terms may vanish (shifts commute); |g| |K| keeps their rounding from being compared.
    """
    members = [m for of in families.values() for m in of]
    one = here.terms(members, [c for of in elements.values() for c in of])
    draws = [torch.randn(m.dimension, generator=rng, dtype=torch.float64) for m in members]
    two = here.terms(members, draws)
    gap = abs(dot(two[1], one[0]) - dot(one[1], two[0]))
    scale = norm(two[1]) * norm(one[0]) + norm(one[1]) * norm(two[0])
    scale += here.size * (norm(one[0]) + norm(two[0]))
    known = max([m.residual for m in members if m.status == "approximate"], default=0.0)
    floor = max(noise, 3 * known)
    value = gap / max(scale, 1e-300)
    return Measurement("bracket", value, floor=floor, verdict=verdict(value, floor))


def _resting(family: str) -> Iterator[Measurement]:
    """What is said of a family that moves nothing here, such as a zero head's scale."""
    note = "the parameters that the family moves are zero: its generators vanish"
    for quantity in ("first_order", "second_order"):
        yield Measurement(quantity, math.nan, family, status="not_applicable", note=note)


def _drawn(
    families: dict[str, list[ContinuousSymmetry]], rng: torch.Generator
) -> dict[str, list[Tensor]]:
    """Gaussian coefficients of every member."""
    return {
        family: [torch.randn(m.dimension, generator=rng, dtype=torch.float64) for m in members]
        for family, members in families.items()
    }


def _noise(
    there: _Laws,
    families: dict[str, list[ContinuousSymmetry]],
    elements: dict[str, list[Tensor]],
    laws: dict[str, _Law],
) -> float:
    """Change of the defect per length of tangent between two points an ulp apart."""
    everything = [m for members in families.values() for m in members]
    law = there.of(everything, [e for f in families for e in elements[f]])
    defect = law.defect
    for one in laws.values():
        defect = add(defect, one.defect, -1.0)
    return norm(defect) / max(norm(law.tangent), 1e-300)


def _nudged(params: Parameters, coarsest: float, rng: torch.Generator) -> Parameters:
    """Every parameter moved by about one rounding of the coarsest operation it meets."""
    draw = random_like(params, rng)
    return {
        n: p * (1 + max(torch.finfo(p.dtype).eps, coarsest) * draw[n]) for n, p in params.items()
    }


def _known(members: list[ContinuousSymmetry], first: float) -> float:
    """How far approximate symmetries fail by their nature.

    At least their residual when found; a normalisation's epsilon breaks the second-order law three
    times as much as the first (w.g = 2k gives w^T H w = -6k), and more as the weights shrink.
    """
    found = [m.residual for m in members if m.status == "approximate"]
    return max(*found, 3 * first) if found else 0.0


def _residual(quantity: str, family: str, value: float, floor: float, matvecs: int) -> Measurement:
    return Measurement(
        quantity, value, family, floor=floor, verdict=verdict(value, floor), matvecs=matvecs
    )


def _dimension(family: str, members: list[ContinuousSymmetry]) -> Iterator[Measurement]:
    note = "; ".join(f"{m.name}: {m.dimension} {m.status} {m.residual:.1e}" for m in members)
    total = sum(m.dimension for m in members)
    yield Measurement("dimension", float(total), family, note=note)
