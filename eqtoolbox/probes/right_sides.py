"""Right sides: what the laws of each family equal (0, c or p), and their rounding."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from eqtoolbox.linalg.vectors import add, dot, norm, zeros_like
from eqtoolbox.probes.epsilon import Rates, approximate, predictions, rates, total_rates
from eqtoolbox.probes.implicit_bias import Bias, biases
from eqtoolbox.probes.law import Elements, Law, Laws, Members
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import NotApplicable
from eqtoolbox.weights.parameter import ContinuousSymmetry


class RightSides:
    """Laws g . K = c and H K + (DK)^T g = grad c of every family, with what epsilon predicts.

    Args:
        objective: the loss.
        here: where the laws are measured.
        families: symmetries and equivariances by family.
        elements: of each family, scaled to |K| = 1.
        asks: whether epsilon is asked of all approximate laws at once; else see `asked`.
    """

    def __init__(
        self,
        objective: Objective,
        here: Laws,
        families: Members,
        elements: Elements,
        asks: bool = True,
    ) -> None:
        self.elements = elements
        self.why: dict[str, str] = {}  # laws that cannot be measured
        self._objective, self._size = objective, here.size
        moving = {f: m for f, m in families.items() if any(s.equivariant for s in m)}
        bias: dict[str, Bias] = {}
        try:
            bias = biases(objective, here.params, moving, elements) if moving else {}
        except NotApplicable as reason:
            self.why, moving = dict.fromkeys(moving, str(reason)), {}
        self.families = {f: m for f, m in families.items() if f not in self.why}
        near = approximate(self.families) if asks else {}
        self.rates: dict[str, Rates] = {}
        self.epsilon: frozenset[str] = frozenset()  # families of which it predicts something
        self.unexplained: dict[str, str] = {}  # approximate laws of which epsilon cannot be asked
        told: dict[str, Bias] = {}
        try:
            self.rates = rates(objective, here.params, near, elements) if near else {}
            told = predictions(objective, here.params, self.rates) if near else {}
            self.epsilon = frozenset(told)
        except NotApplicable as reason:
            self.rates, self.unexplained = {}, dict.fromkeys(near, str(reason))
        self.noise: dict[str, float] = {}
        self.first_noise = 0.0
        still = {f: m for f, m in self.families.items() if f not in moving}
        self.laws: dict[str, Law] = {}
        self._groups = [
            (some, self._measured(here, some, bias, told)) for some in (moving, still) if some
        ]
        self.laws = {f: self.laws[f] for f in self.families}

    def refused(self) -> Iterator[Measurement]:
        """What is said of laws that cannot be measured."""
        for family, why in self.why.items():
            for quantity in ("first_order", "second_order"):
                yield Measurement(quantity, math.nan, family, status="not_applicable", note=why)
        for family, why in self.unexplained.items():
            yield Measurement("epsilon", math.nan, family, status="not_applicable", note=why)

    def asked(self, params: Parameters, family: str) -> bool:
        """Whether epsilon predicts p of this law when it is asked now; sets no more than p."""
        near = approximate({family: self.families[family]})
        try:
            found = rates(self._objective, params, near, self.elements) if near else {}
            told = predictions(self._objective, params, found) if near else {}
        except NotApplicable:
            return False
        self.rates |= found
        for f, p in told.items():
            self.laws[f] = replace(self.laws[f], p=p.value, p_slope=norm(p.gradient))
        return bool(told)

    def _measured(
        self, here: Laws, families: Members, bias: Mapping[str, Bias], told: Mapping[str, Bias]
    ) -> Parameters:
        """Measure the law of every family; what all of them lack together."""
        total = zeros_like(here.params)
        for family, members in families.items():
            law, left = _law(
                here, members, self.elements[family], bias.get(family), told.get(family)
            )
            self.laws[family], total = law, add(total, left)
        return total

    def compare(self, there: Laws) -> None:
        """Measure the laws again elsewhere: what changes is their rounding."""
        for families, left in self._groups:
            self._compare(there, families, left)
        self._groups.clear()

    def _compare(self, there: Laws, families: Members, left: Parameters) -> None:
        """Change of the laws of these families together from here to there: their rounding.

        One product along the sum of the elements, |K| = 1 each: errors of families are independent,
        so that their sum is at least as large as each. Equivariances, along which the loss bends,
        are compared apart from symmetries, along which it is flat.
        """
        members = [m for of in families.values() for m in of]
        drawn = [c for family in families for c in self.elements[family]]
        tangent, pulled = there.terms(members, drawn)
        defect = add(add(there.operator(tangent), pulled), left, -1.0)
        if any(m.equivariant for m in members):
            c = biases(self._objective, there.params, {"": members}, {"": drawn})[""]
            held = c.value - dot(there.gradient, tangent)
            held += sum(self.laws[f].slope for f in families)
            self.first_noise = abs(held) / self._size
            defect = add(defect, c.gradient, -1.0)
        near = [self.rates[f] for f in families if f in self.rates]
        if near:
            p = predictions(self._objective, there.params, {"": total_rates(near)})[""]
            defect = add(defect, p.gradient, -1.0)
        self.noise |= dict.fromkeys(families, norm(defect))


def _law(
    here: Laws,
    members: Sequence[ContinuousSymmetry],
    elements: Sequence[Tensor],
    c: Bias | None,
    p: Bias | None,
) -> tuple[Law, Parameters]:
    """The law along an element, and H K + (DK)^T g - grad c - grad p, which it lacks."""
    tangent, pulled = here.terms(members, elements)
    product = here.operator(tangent)
    slope, curvature = dot(here.gradient, tangent), dot(tangent, product)
    size = norm(product) + norm(pulled)
    if c is not None:
        pulled, size, slope = (
            add(pulled, c.gradient, -1.0),
            size + norm(c.gradient),
            slope - c.value,
        )
    defect = add(product, pulled)
    left = defect if p is None else add(defect, p.gradient, -1.0)
    predicted = -dot(tangent, pulled)
    law = Law(
        length=norm(tangent),
        slope=slope,
        curvature=curvature,
        size=size,
        defect=norm(defect),
        left=norm(left),
        predicted=predicted if p is None else predicted + dot(tangent, p.gradient),
        p=0.0 if p is None else p.value,
        p_slope=0.0 if p is None else norm(p.gradient),
    )
    return law, left
