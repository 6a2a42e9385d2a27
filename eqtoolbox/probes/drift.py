"""Drift: what one step and all steps so far did to the charges, as measurements by family."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from eqtoolbox.probes.ledger import CAUSES, Ledger
from eqtoolbox.record.record import VIOLATED, Verdict, verdict
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.weights.charges.change import Change
from eqtoolbox.weights.charges.charges import Charges

TINY = 1e-300
WITHIN = "within what the epsilon of normalisations may leave"
OTHERS = "the gradient that was used is not that of the loss"
PREDICTED = "the epsilon of normalisations predicts"


@dataclass(frozen=True, kw_only=True, eq=False)
class Drift:
    """The drift of all charges at one step; see `Conservation` for what the numbers mean."""

    charges: Charges
    change: Change
    state: Ledger  # up to this step
    scales: Tensor  # what |Q| of each charge could be, (charges,)
    eps: float  # rounding of the parameters
    why: str  # why there is no budget; empty if there is one
    exact: Mapping[str, tuple[Tensor, Tensor, Tensor]]  # what is sketched, on kept steps
    noise: float = 0.0  # of first-order laws at this step, where it was measured; over |g| |K|
    shrunk: float = 1.0  # of variances through other tensors than a family's own
    epsilon: Mapping[str, Tensor] = field(default_factory=dict)  # p of generators, where known
    known: frozenset[str] | None = None  # parameters whose gradient is; None: all of them
    other: str = ""  # why the gradient that was used is not the loss's, where that was seen

    @property
    def total(self) -> Tensor:
        """Drift since the start, (charges,)."""
        return self.state.values - self.state.start

    @property
    def reach(self) -> Tensor:
        """What |Q| could be now or could be at the start, whichever is larger, (charges,)."""
        return torch.maximum(self.scales, self._began_reach)

    @property
    def _began_reach(self) -> Tensor:
        return self.scales if self.state.reach is None else self.state.reach

    def every_step(self, step: int, size: float) -> Iterator[Measurement]:
        """Drift and first-order law of every family; `size` is the gradient's norm."""
        charges, families = self.charges, self._families()
        rows = [self.total, self.change.drift, self.scales, self.reach]
        vectors = torch.stack(rows).cpu().numpy()
        units = np.add.reduceat(np.square(vectors), charges.unit_starts, axis=1)
        norms = np.sqrt(np.add.reduceat(units, self._first_units(families), axis=1))
        relative = np.sqrt(units[0]) / np.maximum(np.sqrt(units[3]), TINY)
        rounding = self.eps * math.sqrt(step + 1)  # a random walk of roundings
        for i, family in enumerate(families):
            drift, moved, now, scale = (max(float(x), TINY) for x in norms[:, i])
            own = charges.unit_slices[family]
            index = own.start + int(relative[own].argmax())
            worst, error = float(relative[index]), charges.error(family, vectors[0])
            if family in self.exact:
                drift, worst, index = self._exactly(family, own.start)
                error, scale = None, 1.0
            error = error / scale if error is not None else None
            drift = drift / scale if drift > TINY else 0.0
            begun = {"begun": self.state.begun} if self.state.begun else {}
            yield Measurement("drift", drift, family, stderr=error, floor=rounding, facts=begun)
            unit = charges.unit(int(charges.unit_starts[index]))
            note = unit if error is None else f"{unit}, by random elements"
            yield Measurement("worst_drift", worst, family, note=note, facts={"which": note})
            error = charges.error(family, vectors[1])
            error = error / now if error is not None else None
            moved = moved / now if moved > TINY else 0.0
            yield Measurement("step_drift", moved, family, stderr=error)
        if math.isfinite(size):
            yield from self._first_order(size)

    def _exactly(self, family: str, first: int) -> tuple[float, float, int]:
        """Of all charges that a sketch stands for: drift, worst drift of a unit, and which."""
        charges, _, units = (x.cpu().numpy() for x in self.exact[family])
        drift = charges - self.state.sketched[family].cpu().numpy()
        scales = self._exact_reach(family).cpu().numpy()
        squares = np.stack([np.bincount(units, np.square(x)) for x in (drift, scales)])
        relative = np.sqrt(squares[0]) / np.maximum(np.sqrt(squares[1]), TINY)
        size = math.sqrt(squares[0].sum()) / max(math.sqrt(squares[1].sum()), TINY)
        worst = int(relative.argmax())
        return size, float(relative[worst]), first + worst

    def _exact_reach(self, family: str) -> Tensor:
        scales = self.exact[family][1]
        began: Tensor = self.state.sketched_reach.get(family, scales)
        return torch.maximum(scales, began.to(scales))

    def _first_order(self, size: float) -> Iterator[Measurement]:
        slopes = self.change.slopes.cpu().numpy()
        for family, where in self.charges.generators.items():
            if family in self.charges.moving or not self._is_known(family):
                continue
            noise, ratio = self.state.noise[family]
            absolute = min(noise / size, 1.0) if size else 0.0  # of a share; of no gradient nothing
            floor = max(absolute, ratio, self.eps, self.noise)
            whole = max(size * self.state.lengths[family], TINY)
            value = float(np.linalg.norm(slopes[where])) / whole
            error = self.charges.error(family, slopes, generators=True)
            left, said = self._left(family, whole), _of_cosine(value, floor)
            told = f"{WITHIN} ({left:.1e}); noether/epsilon tells of the loss"
            if family in self.epsilon:
                p = self.epsilon[family].cpu().numpy()
                rest = float(np.linalg.norm(slopes[where] - p)) / whole
                left, said = 0.0, _of_cosine(rest, floor)
                told = f"{PREDICTED} {np.linalg.norm(p) / whole:.3e}"
                yield Measurement("epsilon", rest, family, floor=floor, verdict=said, note=told)
            elif left and said != "holds":  # rounding is not all that an approximate law may lack
                beyond = verdict(value, max(left, floor)) == "violated"
                said = "violated" if beyond else "unresolved"
            near = family in self.epsilon or bool(left and said == "unresolved")
            other = f"{OTHERS}: {self.other}" if self.other and said == "violated" else ""
            yield Measurement(
                "first_order",
                value,
                family,
                stderr=error / whole if error is not None else None,
                floor=floor,
                verdict=said,
                note=told if near else other,
                facts={"epsilon": True} if near else {},
            )

    def _is_known(self, family: str) -> bool:
        """Whether the gradient is, of all that the family moves."""
        own = (m.names for m in self.charges.members if m.family == family)
        return self.known is None or self.known.issuperset(chain.from_iterable(own))

    def _left(self, family: str, whole: float) -> float:
        """What the nature of an approximate law may leave of it now, relative; else 0."""
        where = self.charges.families.get(family, slice(0, 0))
        now, start = self.scales[where], self._began_reach[where]
        return self.state.leftover.of(family, whole, now, start, self.shrunk)

    def closure(self, gap: Tensor, steps: int) -> Iterator[Measurement]:
        """How far the charges are from what the budgets of the last `steps` steps add up to."""
        for family, where in self._families().items():
            if self.why:
                yield Measurement(
                    "closure", math.nan, family, status="not_applicable", note=self.why
                )
                continue
            largest = torch.maximum(self.scales[where], self.state.scales[where]).max()
            error = float(gap[where].abs().max()) / max(float(largest), TINY)
            floor = 4 * self.eps * math.sqrt(steps + 1)
            yield Measurement("closure", error, family, floor=floor, verdict=verdict(error, floor))

    def vectors(self) -> Iterator[Measurement]:
        """Charges and their drift, one number a charge."""
        relative = self.total / self.reach.clamp_min(TINY)
        for family, where in self._families().items():
            charge, drift = self.state.values[where], relative[where]
            if family in self.exact:
                charge, reach = self.exact[family][0], self._exact_reach(family)
                drift = (charge - self.state.sketched[family]) / reach.clamp_min(TINY)
            members = [m for m in self.charges.members if m.family == family and m.charges]
            note = "; ".join(f"{m.name}: {m.charges}" for m in members)
            facts = {"members": [m.name for m in members], "sizes": [m.charges for m in members]}
            for quantity, values in (("charge", charge), ("unit_drift", drift)):
                rms = float(values.square().mean().sqrt())
                vector = values.to("cpu", torch.float32).numpy()
                yield Measurement(quantity, rms, family, vector=vector, note=note, facts=facts)

    def budget(self) -> Iterator[Measurement]:
        """The causes of this step's drift and of the drift since the start, along the drifts."""
        if self.why:
            return
        for family, where in self._families().items():
            total, moved = self.total[where], self.change.drift[where]
            scale = max(float(self.scales[where].norm()), TINY)
            first = "implicit_bias" if family in self.charges.moving else "symmetry"
            for cause, term in self.change.causes.items():
                along = float(term[where] @ moved) / max(float(moved.norm()), TINY)
                yield Measurement(first if cause == "symmetry" else cause, along / scale, family)
            if self.state.acted is not None:
                yield Measurement("act", float(self.state.acted[where].norm()) / scale, family)
            energy = float(total @ total)
            caused = self.state.causes[:, where] @ total
            shares = dict.fromkeys(CAUSES, 0.0)
            if energy:
                shares = dict(zip(CAUSES, (caused / energy).tolist(), strict=True))
            if self.state.acts is not None:
                shares["act"] = float(self.state.acts[where] @ total) / energy if energy else 0.0
            shares["unmeasured"] = 1.0 - sum(shares.values()) if energy else 0.0
            for cause, share in shares.items():
                name = first if cause == "symmetry" else cause
                yield Measurement(f"share_{name}", share, family)

    def _families(self) -> dict[str, slice]:
        """Only what has charges: a bias shift obeys its laws and conserves nothing."""
        return {f: w for f, w in self.charges.families.items() if w.stop > w.start}

    def _first_units(self, families: dict[str, slice]) -> list[int]:
        return [self.charges.unit_slices[family].start for family in families]


def _of_cosine(value: float, floor: float) -> Verdict:
    """Whether a law holds whose residual is 1 at most: not to be told where no break would show."""
    return verdict(value, floor) if VIOLATED * floor < 1 else "unresolved"
