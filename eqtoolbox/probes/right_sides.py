"""Right sides: what the laws of each family equal (0, c or p), and their rounding.

One Hessian product along the sum of all elements tells r, what all their laws lack together. Where
r is rounding and no more, so is what each of them lacks, and H K of each is what its law leaves for
it; where r is more, each family gets a product of its own.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from eqtoolbox.linalg.vectors import add, dot, norm, zeros_like
from eqtoolbox.probes.epsilon import Rates, approximate, predictions, rates, total_rates
from eqtoolbox.probes.implicit_bias import biases
from eqtoolbox.probes.law import Bias, Elements, Law, Laws, Members
from eqtoolbox.record.record import HOLDS
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.thread.scope import unobserved
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import NotApplicable


@dataclass(frozen=True)
class _Group:
    """Families that are compared together, what those that share a product lack, and what all."""

    families: Members
    shared: list[str]
    lacked: float
    left: Parameters


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
        self.slopes: list[list[Tensor]] = []  # dL/dlog(eps), where epsilon was asked
        self.epsilon: frozenset[str] = frozenset()  # families of which it predicts something
        self.unexplained: dict[str, str] = {}  # approximate laws of which epsilon cannot be asked
        told: dict[str, Bias] = {}
        try:
            self.rates = rates(objective, here.params, near, elements) if near else {}
            told = predictions(objective, here.params, self.rates, self.slopes) if near else {}
            self.epsilon = frozenset(told)
        except NotApplicable as reason:
            self.rates, self.unexplained = {}, dict.fromkeys(near, str(reason))
        self.noise: dict[str, float] = {}
        self.first_noise = 0.0
        still = {f: m for f, m in self.families.items() if f not in moving}
        self.laws: dict[str, Law] = {}
        self._moving, groups = moving, (moving, still)
        self._groups = [self._measured(here, some, bias, told) for some in groups if some]
        self.laws = {f: self.laws[f] for f in self.families}

    def refused(self) -> Iterator[Measurement]:
        """What is said of laws that cannot be measured."""
        for family, why in self.why.items():
            for quantity in ("first_order", "second_order"):
                yield Measurement(quantity, math.nan, family, status="not_applicable", note=why)
        for family, why in self.unexplained.items():
            yield Measurement("epsilon", math.nan, family, status="not_applicable", note=why)

    def sharing(self, family: str) -> Sequence[str]:
        """The families that share its product, and with it what all of them lack."""
        return next((g.shared for g in self._groups if family in g.shared), [family])

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
    ) -> _Group:
        """Measure every law; approximate ones, which lack more than rounding, by themselves."""
        alone = approximate(families)
        shared = [f for f in families if f not in alone]
        left = self._together(here, shared, bias, told)
        lacked = norm(left)
        for family in alone:
            left = add(left, self._together(here, [family], bias, told))
        return _Group(families, shared, lacked, left)

    def _together(
        self,
        here: Laws,
        families: Sequence[str],
        bias: Mapping[str, Bias],
        told: Mapping[str, Bias],
    ) -> Parameters:
        """Measure the laws of these families by one product; what they lack together."""
        tangents, left = zeros_like(here.params), zeros_like(here.params)
        if not families:
            return left
        for family in families:
            tangent, pulled = here.terms(self.families[family], self.elements[family])
            rest = _less(pulled, bias.get(family), told.get(family))
            tangents, left = add(tangents, tangent), add(left, rest)
        product = here.operator(tangents)
        left = add(left, product)
        for k, family in enumerate(families):
            c, p = bias.get(family), told.get(family)
            if len(families) > 1:
                tangent, pulled = here.terms(self.families[family], self.elements[family])
                product = add(left, _less(pulled, c, p), -1.0)
            law = _law(here, tangent, pulled, product, c, p)
            self.laws[family] = replace(law, matvecs=int(k == 0))
        return left

    def compare(self, there: Laws, here: Laws) -> None:
        """Measure the laws again elsewhere: what changes is their rounding.

        Where those that share a product lack more than that, each is measured by itself.
        """
        for group in self._groups:
            self._compare(there, group.families, group.left)
        there.release()
        for group in self._groups:
            if group.shared and group.lacked > HOLDS * self.noise[group.shared[0]]:
                self._apart(here, group.shared)
        self._groups.clear()

    def failing(self) -> list[str]:
        """Families whose second-order law is exact, and lacks more than was found of rounding."""
        near = approximate(self.families)
        exact = (f for f in self.laws if f not in near)
        return [f for f in exact if self.laws[f].defect > HOLDS * self.noise[f]]

    def judge(self, families: Sequence[str], objective: Objective, wide: Laws) -> None:
        """What these laws lack here and not in float64 is rounding, too.

        Args:
            families: as of `failing`.
            objective, wide: the loss and its laws in float64.
        """
        for family in families:
            of = self.families[family], self.elements[family]
            tangent, pulled = wide.terms(*of)
            left = add(wide.operator(tangent), pulled)
            if family in self._moving:
                c = biases(objective, wide.params, {family: of[0]}, {family: of[1]})[family]
                left = add(left, c.gradient, -1.0)
            rounded = abs(self.laws[family].defect - norm(left))
            self.noise[family] = max(self.noise[family], rounded)

    def _apart(self, here: Laws, families: Sequence[str]) -> None:
        """Measure the laws of these families again, each by a product of its own."""
        moving = {f: m for f, m in self._moving.items() if f in families}
        bias = biases(self._objective, here.params, moving, self.elements) if moving else {}
        for family in families:
            self._together(here, [family], bias, {})
        here.release()

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


def _less(pulled: Parameters, c: Bias | None, p: Bias | None) -> Parameters:
    """(DK)^T g - grad c - grad p."""
    for told in (c, p):
        pulled = pulled if told is None else add(pulled, told.gradient, -1.0)
    return pulled


@unobserved()
def _law(
    here: Laws,
    tangent: Parameters,
    pulled: Parameters,
    product: Parameters,
    c: Bias | None,
    p: Bias | None,
) -> Law:
    """The law along an element K = `tangent`, with `pulled` = (DK)^T g and `product` = H K."""
    slope, size = dot(here.gradient, tangent), norm(product) + norm(pulled)
    if c is not None:
        slope, size = slope - c.value, size + norm(c.gradient)
    rest = _less(pulled, c, p)
    left = norm(add(product, rest))
    return Law(
        length=norm(tangent),
        slope=slope,
        curvature=dot(tangent, product),
        size=size,
        defect=left if p is None else norm(add(product, _less(pulled, c, None))),
        left=left,
        predicted=-dot(tangent, rest),
        p=0.0 if p is None else p.value,
        p_slope=0.0 if p is None else norm(p.gradient),
    )
