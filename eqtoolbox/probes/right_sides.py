"""Right sides: what the laws of each family equal (0, c or p), and their rounding.

One Hessian product along the sum of all elements tells r, what all their laws lack together. Where
r is rounding and no more, so is what each of them lacks, and H K of each is what its law leaves for
it; where r is more, each family gets a product of its own.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from eqtoolbox.linalg.vectors import add, add_to, dot, norm, zeros_like
from eqtoolbox.probes.epsilon import Rates, approximate, predictions, rates, total_rates
from eqtoolbox.probes.implicit_bias import bias, biases
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
    left: dict[str, Tensor]


@dataclass(frozen=True)
class _Side:
    """The law of one family along K, but for H K: with rest = (DK)^T g - grad c."""

    length: float  # |K|
    slope: float  # g . K - c
    size: float  # |(DK)^T g| + |grad c|
    rest: float  # |rest|
    along: float  # <K, rest>
    epsilon: float  # <K, grad p>
    p: Bias | None

    @unobserved()
    def law(self, left: Parameters, along: float, product: float | None) -> Law:
        """The whole law.

        Args:
            left: H K + rest, of this family or of those that share its product.
            along: <K, left>.
            product: |H K|; None: what the law leaves for it, at most.
        """
        lacked, p = norm(left), self.p
        return Law(
            length=self.length,
            slope=self.slope,
            curvature=along - self.along,
            size=self.size + (self.rest + lacked if product is None else product),
            defect=lacked,
            left=lacked if p is None else norm(add(left, p.gradient, -1.0)),
            predicted=self.epsilon - self.along,
            p=0.0 if p is None else p.value,
            p_slope=0.0 if p is None else norm(p.gradient),
        )


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
        self.families, self._moving = dict(families), moving
        near = approximate(families) if asks else {}
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
        still = {f: m for f, m in families.items() if f not in moving}
        self.laws: dict[str, Law] = {}
        self._groups: list[_Group] = []
        for some in (moving, still):
            try:
                self._groups += [self._measured(here, some, told)] if some else []
            except NotApplicable as reason:  # of outputs: `biases`
                self.why = dict.fromkeys(some, str(reason))
        self.families = {f: m for f, m in families.items() if f not in self.why}
        self.laws = {f: self.laws[f] for f in self.families}

    def refused(self) -> Iterator[Measurement]:
        """What is said of laws that cannot be measured."""
        for family, why in self.why.items():
            for quantity in ("first_order", "second_order"):
                yield Measurement(quantity, math.nan, family, status="not_applicable", note=why)
        for family in (f for f in self.unexplained if f not in self.why):
            why = self.unexplained[family]
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

    def _measured(self, here: Laws, families: Members, told: Mapping[str, Bias]) -> _Group:
        """Measure every law; approximate ones, which lack more than rounding, by themselves."""
        alone = approximate(families)
        shared = [f for f in families if f not in alone]
        left = self._together(here, shared, told) if shared else zeros_like(here.params)
        lacked = norm(left)
        for family in alone:
            add_to(left, self._together(here, [family], told))
        return _Group(families, shared, lacked, left)

    def _together(
        self, here: Laws, families: Sequence[str], told: Mapping[str, Bias]
    ) -> dict[str, Tensor]:
        """Measure the laws of these families by one product; what they lack together.

        Family by family: no vector as long as the parameters is held for each.
        """
        left, sides = zeros_like(here.params), dict[str, _Side]()

        def take(family: str, c: Bias | None = None) -> None:
            tangent, rest = here.terms(self.families[family], self.elements[family])
            p, size, slope = told.get(family), norm(rest), dot(here.gradient, tangent)
            if c is not None:
                size, slope = size + norm(c.gradient), slope - c.value
                add_to(rest, c.gradient, -1.0)
            along, epsilon = dot(tangent, rest), dot(tangent, p.gradient) if p else 0.0
            sides[family] = _Side(norm(tangent), slope, size, norm(rest), along, epsilon, p)
            add_to(left, rest)

        moving = {f: self._moving[f] for f in families if f in self._moving}
        if moving:
            biases(self._objective, here.params, moving, self.elements, take)
        for family in families:
            if family not in moving:
                take(family)
        members = [m for f in families for m in self.families[f]]
        product = here.operator(
            here.tangent(members, [c for f in families for c in self.elements[f]])
        )
        length = norm(product) if len(families) == 1 else None
        add_to(left, product)
        del product
        for k, family in enumerate(families):
            tangent = here.tangent(self.families[family], self.elements[family])
            law = sides[family].law(left, dot(tangent, left), length)
            self.laws[family] = replace(law, matvecs=int(k == 0))
        for family in families:
            if p := told.get(family):
                add_to(left, p.gradient, -1.0)
        return left

    def compare(self, there: Laws, here: Laws) -> None:
        """Measure the laws again elsewhere: what changes is their rounding.

        Where those that share a product lack more than that, each is measured by itself.
        """
        for group in self._groups:
            self._compare(there, group.families, group.left)
            group.left.clear()  # a vector as long as the parameters
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
            tangent, left = wide.terms(*of)
            add_to(left, wide.operator(tangent))
            if family in self._moving:
                add_to(left, bias(objective, wide.params, *of).gradient, -1.0)
            rounded = abs(self.laws[family].defect - norm(left))
            self.noise[family] = max(self.noise[family], rounded)

    def _apart(self, here: Laws, families: Sequence[str]) -> None:
        """Measure the laws of these families again, each by a product of its own."""
        for family in families:
            self._together(here, [family], {})
        here.release()

    def _compare(self, there: Laws, families: Members, left: dict[str, Tensor]) -> None:
        """Change of the laws of these families together from here to there: their rounding.

        One product along the sum of the elements, |K| = 1 each: errors of families are independent,
        so that their sum is at least as large as each. Equivariances, along which the loss bends,
        are compared apart from symmetries, along which it is flat.
        """
        members = [m for of in families.values() for m in of]
        drawn = [c for family in families for c in self.elements[family]]
        tangent, defect = there.terms(members, drawn)
        slope = dot(there.gradient, tangent)
        add_to(add_to(defect, left, -1.0), there.operator(tangent))
        del tangent
        if any(m.equivariant for m in members):
            c = bias(self._objective, there.params, members, drawn)
            held = c.value - slope + sum(self.laws[f].slope for f in families)
            self.first_noise = abs(held) / self._size
            add_to(defect, c.gradient, -1.0)
            del c
        near = [self.rates[f] for f in families if f in self.rates]
        if near:
            p = predictions(self._objective, there.params, {"": total_rates(near)})[""]
            add_to(defect, p.gradient, -1.0)
        self.noise |= dict.fromkeys(families, norm(defect))
