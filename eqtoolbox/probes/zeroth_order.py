"""Order 0 of the laws: what a finite transformation leaves of the loss, or of the outputs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from eqtoolbox.linalg.vectors import wide
from eqtoolbox.probes.epsilon import Rates, instead
from eqtoolbox.probes.law import moved_by
from eqtoolbox.record.record import verdict
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.thread.scope import unobserved
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import NotApplicable
from eqtoolbox.weights.epsilon import at_factors
from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search.verification import move, moved

STRONGEST = 1.0  # of the coefficients' root mean square; what verification draws, if less
REPEATS = 3  # evaluations a rounding away, whose root mean square is the loss's own noise


@dataclass
class ZerothOrder:
    """L(T_c theta) = L(theta), and f(T_c theta) = R_c f(theta) for equivariances.

    One transformation by a random element c of all members of a family together, its coefficients
    of root mean square `strength`; two forward passes a family, one of them at T_c theta moved by a
    rounding: the floor. Relative to |L| and |f|.
    """

    objective: Objective
    params: Parameters
    rounding: float
    rng: torch.Generator

    @cached_property
    def value(self) -> float:
        """L(theta)."""
        return self._loss(self.params)

    @cached_property
    def outputs(self) -> Tensor:
        """f(theta)."""
        return self._output(self.params)

    @cached_property
    def noise(self) -> float:
        """The loss's change by a rounding of the parameters."""
        near = (moved_by(self.params, self.rounding, self.rng) for _ in range(REPEATS))
        apart = [self._loss(p) - self.value for p in near]
        return math.hypot(*apart) / math.sqrt(REPEATS)

    def of(
        self,
        family: str,
        members: Sequence[ContinuousSymmetry],
        elements: Sequence[Tensor],
        rates: Rates | None = None,
        floor: float | None = None,
    ) -> Measurement:
        """The residual of one family.

        Args:
            family, members, elements: of it.
            rates: with these epsilon's part of the residual counts as floor.
            floor: what rounding leaves, where it is known; evaluates the loss once less then.
        """
        there, drawn, s = self._moved(members, elements)
        if any(m.equivariant for m in members):
            return self._of_outputs(family, members, drawn, there, rates, s, floor)
        size = max(abs(self.value), 1e-300)
        moved_value = self._loss(there)
        gap = abs(moved_value - self.value) / size
        if floor is None:
            near = moved_by(there, self.rounding, self.rng)
            floor = math.hypot(self.noise, self._loss(near) - moved_value) / size
        note = ""
        if rates is not None:
            found = instead(self.objective, self.params, rates, s)
            predicted = abs(sum(w * float(v) for w, v in found) - self.value) / size
            floor = max(floor, predicted)
            note = f"epsilon predicts {predicted:.3e}"
        return self._measurement(family, gap, floor, note)

    @unobserved()
    def _moved(
        self, members: Sequence[ContinuousSymmetry], elements: Sequence[Tensor]
    ) -> tuple[Parameters, list[Tensor], float]:
        """T_c theta, c of each member, and c over the elements."""
        every = torch.cat([c.reshape(-1) for c in elements])
        typical = float(every.norm()) / math.sqrt(max(len(every), 1))
        s = min(STRONGEST, *(m.strength for m in members)) / max(typical, 1e-300)
        names = {n for m in members for n in m.names}
        exact = {n: wide(p) if n in names else p for n, p in self.params.items()}
        drawn = [(s * c).to(exact[members[0].names[0]]) for c in elements]
        pairs = zip(members, drawn, strict=True)
        turned = moved(exact, [move(m, m.flow(c)) for m, c in pairs])
        there = {n: t.to(self.params[n].dtype) for n, t in turned.items()}  # rounded once
        return there, drawn, s

    def _of_outputs(
        self,
        family: str,
        members: Sequence[ContinuousSymmetry],
        drawn: Sequence[Tensor],
        point: Parameters,
        rates: Rates | None,
        s: float,
        known: float | None,
    ) -> Measurement:
        """As `of`, at the point T_c theta with c = `drawn`, s times the elements."""

        def turned(outputs: Tensor) -> Tensor:
            for member, c in zip(members, drawn, strict=True):
                outputs = member.transform_outputs(outputs, c)
            return outputs

        there, expected = self._output(point).double(), turned(self.outputs.double())
        size = max(float(expected.norm()), 1e-300)
        gap, note = float((there - expected).norm()), ""
        if known is None:
            near = self._output(moved_by(point, self.rounding, self.rng)).double()
            known = float((near - there).norm()) / size
        floor = known * size
        if rates is not None:
            with torch.no_grad():
                other = at_factors(self._output, self.params, [(-s * r).exp() for r in rates[-1]])
            predicted = float((turned(other.double()) - expected).norm())
            floor, note = max(floor, predicted), f"epsilon predicts {predicted / size:.3e}"
        return self._measurement(family, gap / size, floor / size, note)

    def _measurement(self, family: str, gap: float, floor: float, note: str = "") -> Measurement:
        eps = max(torch.finfo(p.dtype).eps for p in self.params.values())
        floor = max(floor, 2 * eps)  # both numbers are rounded
        judged = verdict(gap, floor)
        return Measurement("zeroth_order", gap, family, floor=floor, verdict=judged, note=note)

    def _loss(self, params: Mapping[str, Tensor]) -> float:
        with torch.no_grad():
            return float(self.objective.loss(params))

    def _output(self, params: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            output, _ = self.objective.single.output_and_loss(params)
        if output is None:
            raise NotApplicable("the loss does not call the model once for one output tensor")
        return output
