"""Order 0 of the laws: what a finite transformation leaves of the loss, or of the outputs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from eqtoolbox.linalg.vectors import wide
from eqtoolbox.probes.epsilon import Rates, approximate, instead
from eqtoolbox.probes.law import Elements, Members, moved_by
from eqtoolbox.record.record import verdict
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.thread.scope import unobserved
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import NotApplicable
from eqtoolbox.weights.epsilon import at_factors
from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search.moves import move, moved_and_rounded

STRONGEST = 1.0  # of the coefficients' root mean square; what verification draws, if less
REPEATS = 3  # evaluations a rounding away, whose root mean square is the loss's own noise


@dataclass
class ZerothOrder:
    """L(T_c theta) = L(theta), and f(T_c theta) = R_c f(theta) for equivariances.

    One transformation by a random element c of all members of a family together, its coefficients
    of root mean square `strength`; two forward passes a family, one of them at T_c theta moved by a
    rounding: the floor. Relative to |L| and |f|. Exact families are transformed one after the other
    for the two passes of one, and each by itself where that leaves more than rounding: float64
    judges what an exact law fails by.
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

    def of_all(
        self,
        families: Members,
        elements: Elements,
        rates: Mapping[str, Rates],
        floors: Mapping[str, float] | None = None,
    ) -> dict[str, Measurement]:
        """The residual of each family; see `of`."""
        known, found = floors or {}, dict[str, Measurement]()
        exact = {f: m for f, m in families.items() if f not in approximate(families)}
        moving = {f for f, members in exact.items() if any(m.equivariant for m in members)}
        for shared in ([f for f in exact if f in moving], [f for f in exact if f not in moving]):
            if len(shared) > 1:
                found |= self._together({f: exact[f] for f in shared}, elements, known)
        for f, members in families.items():
            if f not in found or found[f].verdict != "holds":
                found[f] = self.of(f, members, elements[f], rates.get(f), known.get(f))
        return found

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
        s = self._strength(members, elements)
        drawn = [s * c for c in elements]
        made = self._measurement(family, *self._left(members, drawn, floor, rates, s))
        if floor is not None or rates is not None or made.verdict == "holds":
            return made
        rounded = abs(made.value - self._in_float64(members, drawn, made.value))
        return self._measurement(family, made.value, max(made.floor or 0.0, rounded))

    def _in_float64(
        self, members: Sequence[ContinuousSymmetry], drawn: Sequence[Tensor], known: float
    ) -> float:
        """What T_c leaves in float64; `known` where that computes something else, or nothing.

        A large shift before a normalisation cancels with an error that is the same at all
        parameters a rounding away.
        """
        try:
            params = {n: p.double() for n, p in self.params.items()}
            wide = replace(self, objective=self.objective.to(torch.float64), params=params)
            eps = max(torch.finfo(p.dtype).eps for p in self.params.values())
            if abs(wide.value - self.value) > math.sqrt(eps) * abs(wide.value):
                return known  # of another dropout mask, say
            return wide._left(members, drawn, 0.0)[0]
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return known  # the model insists on a type of its own

    def _together(
        self, families: Members, elements: Elements, floors: Mapping[str, float]
    ) -> dict[str, Measurement]:
        """What the transformations of all these families, one after the other, leave: of each."""
        drawn = []
        for f, members in families.items():
            s = self._strength(members, elements[f])
            drawn += [(m, s * c) for m, c in zip(members, elements[f], strict=True)]
        drawn.sort(key=lambda pair: not pair[0].separable)  # the order in which they move
        known = None if floors.keys().isdisjoint(families) else 0.0
        gap, floor, _ = self._left([m for m, _ in drawn], [c for _, c in drawn], known)
        return {f: self._measurement(f, gap, floors.get(f, floor)) for f in families}

    def _strength(self, members: Sequence[ContinuousSymmetry], elements: Sequence[Tensor]) -> float:
        """What elements are multiplied by for finite transformations."""
        every = torch.cat([c.reshape(-1) for c in elements])
        typical = float(every.norm()) / math.sqrt(max(len(every), 1))
        return min(STRONGEST, *(m.strength for m in members)) / max(typical, 1e-300)

    def _left(
        self,
        members: Sequence[ContinuousSymmetry],
        drawn: Sequence[Tensor],
        floor: float | None,
        rates: Rates | None = None,
        s: float = 1.0,
    ) -> tuple[float, float, str]:
        """What T_c with c = `drawn`, s times the elements, leaves: residual, floor and note."""
        there = self._moved(members, drawn)
        if any(m.equivariant for m in members):
            return self._of_outputs(members, drawn, there, rates, s, floor)
        size = max(abs(self.value), 1e-300)
        moved_value = self._loss(there)
        gap = abs(moved_value - self.value) / size
        if floor is None:
            near = moved_by(there, self.rounding, self.rng)
            floor = math.hypot(self.noise, self._loss(near) - moved_value) / size
        if rates is None:
            return gap, floor, ""
        found = instead(self.objective, self.params, rates, s)
        predicted = abs(sum(w * float(v) for w, v in found) - self.value) / size
        return gap, max(floor, predicted), f"epsilon predicts {predicted:.3e}"

    @unobserved()
    def _moved(self, members: Sequence[ContinuousSymmetry], drawn: Sequence[Tensor]) -> Parameters:
        """T_c theta, c of each member."""
        moves = []
        for member, c in zip(members, drawn, strict=True):
            some = self.params[member.names[0]].reshape(-1)[:1]
            moves.append(move(member, member.flow(c.to(wide(some)))))
        return moved_and_rounded(self.params, moves)

    def _of_outputs(
        self,
        members: Sequence[ContinuousSymmetry],
        drawn: Sequence[Tensor],
        point: Parameters,
        rates: Rates | None,
        s: float,
        known: float | None,
    ) -> tuple[float, float, str]:
        """As `_left`, of the outputs at T_c theta = `point`."""

        def turned(outputs: Tensor) -> Tensor:
            for member, c in zip(members, drawn, strict=True):
                outputs = member.transform_outputs(outputs, c.to(outputs))
            return outputs

        there, expected = self._output(point).double(), turned(self.outputs.double())
        size = max(self._length(expected), 1e-300)
        gap, note = self._length(there - expected), ""
        if known is None:
            near = self._output(moved_by(point, self.rounding, self.rng)).double()
            known = self._length(near - there) / size
        floor = known * size
        if rates is not None:
            with torch.no_grad():
                other = at_factors(self._output, self.params, [(-s * r).exp() for r in rates[-1]])
            predicted = self._length(turned(other.double()) - expected)
            floor, note = max(floor, predicted), f"epsilon predicts {predicted / size:.3e}"
        return gap / size, floor / size, note

    def _measurement(self, family: str, gap: float, floor: float, note: str = "") -> Measurement:
        eps = max(torch.finfo(p.dtype).eps for p in self.params.values())
        floor = max(floor, 2 * eps)  # both numbers are rounded
        judged = verdict(gap, floor)
        return Measurement("zeroth_order", gap, family, floor=floor, verdict=judged, note=note)

    def _length(self, outputs: Tensor) -> float:
        """Norm over the outputs of the whole batch."""
        square = self.objective.total(outputs.square().sum())
        return math.sqrt(float(square))

    def _loss(self, params: Mapping[str, Tensor]) -> float:
        with torch.no_grad():
            return float(self.objective.loss(params))

    def _output(self, params: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            output: Tensor | None = self.objective.single.output_and_loss(params)[0]
        if output is None:
            raise NotApplicable("the loss does not call the model once for one output tensor")
        return output
