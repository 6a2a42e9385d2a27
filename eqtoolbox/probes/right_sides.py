"""Right sides: what the laws of each family equal (0, c or p), and their rounding."""

import math
from collections.abc import Iterator

from eqtoolbox.linalg.vectors import add, dot, norm, zeros_like
from eqtoolbox.probes.epsilon import Rates, approximate, predictions, rates, total_rates
from eqtoolbox.probes.implicit_bias import Bias, biases
from eqtoolbox.probes.law import Elements, Laws, Members
from eqtoolbox.replay.objective import Objective
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import NotApplicable


class RightSides:
    """Laws g . K = c and H K + (DK)^T g = grad c of every family, with what epsilon predicts.

    Args:
        objective: the loss.
        here: where the laws are measured.
        there: where they are measured again for their rounding.
        families: symmetries and equivariances by family.
        elements: of each family, scaled to |K| = 1.
    """

    def __init__(
        self, objective: Objective, here: Laws, there: Laws, families: Members, elements: Elements
    ) -> None:
        self.elements = elements
        self.why: dict[str, str] = {}  # laws that cannot be measured
        moving = {f: m for f, m in families.items() if any(s.equivariant for s in m)}
        self.bias = dict.fromkeys(families, Bias(0.0, zeros_like(here.params)))
        try:
            self.bias |= biases(objective, here.params, moving, elements) if moving else {}
        except NotApplicable as reason:
            self.why, moving = dict.fromkeys(moving, str(reason)), {}
        self.families = {f: m for f, m in families.items() if f not in self.why}
        self.laws = {
            f: here.of(m, elements[f]).less(self.bias[f].gradient) for f, m in self.families.items()
        }
        near = approximate(self.families)
        self.rates: dict[str, Rates] = {}
        self.epsilon: dict[str, Bias] = {}
        self.unexplained: dict[str, str] = {}  # approximate laws of which epsilon cannot be asked
        try:
            self.rates = rates(objective, here.params, near, elements) if near else {}
            self.epsilon = predictions(objective, here.params, self.rates) if near else {}
        except NotApplicable as reason:
            self.rates, self.unexplained = {}, dict.fromkeys(near, str(reason))
        self.noise: dict[str, float] = {}
        self.first_noise = 0.0
        for some in (moving, {f: m for f, m in self.families.items() if f not in moving}):
            if some:
                self._compare(objective, here, there, some, some is moving)

    def refused(self) -> Iterator[Measurement]:
        """What is said of laws that cannot be measured."""
        for family, why in self.why.items():
            for quantity in ("first_order", "second_order"):
                yield Measurement(quantity, math.nan, family, status="not_applicable", note=why)
        for family, why in self.unexplained.items():
            yield Measurement("epsilon", math.nan, family, status="not_applicable", note=why)

    def _compare(
        self, objective: Objective, here: Laws, there: Laws, families: Members, moving: bool
    ) -> None:
        """Change of the laws of these families together from here to there: their rounding.

        One product along the sum of the elements, |K| = 1 each: errors of families are independent,
        so that their sum is at least as large as each. Equivariances, along which the loss bends,
        are compared apart from symmetries, along which it is flat.
        """
        members = [m for of in families.values() for m in of]
        drawn = [c for family in families for c in self.elements[family]]
        law = there.of(members, drawn)
        if moving:
            c = biases(objective, there.params, {"": members}, {"": drawn})[""]
            held = c.value - dot(there.gradient, law.tangent)
            held += sum(dot(here.gradient, self.laws[f].tangent) for f in families)
            held -= sum(self.bias[f].value for f in families)
            self.first_noise = abs(held) / here.size
            law = law.less(c.gradient)
        near = [self.rates[f] for f in families if f in self.rates]
        if near:
            p = predictions(objective, there.params, {"": total_rates(near)})[""]
            law = law.less(p.gradient)
        defect = law.defect
        for family in families:
            own = self.laws[family]
            left = own.less(self.epsilon[family].gradient) if family in self.epsilon else own
            defect = add(defect, left.defect, -1.0)
        self.noise |= dict.fromkeys(families, norm(defect))
