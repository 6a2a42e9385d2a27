"""Drift: what one step and all steps so far did to the charges, as measurements by family."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.probe import Measurement
from eqtoolbox.record import verdict
from eqtoolbox.symmetry.charges import Change, Charges

CAUSES = ("symmetry", "decay", "optimizer", "finite_step")
TINY = 1e-300


@dataclass(frozen=True, kw_only=True, eq=False)
class Drift:
    """The drift of all charges at one step; see `Conservation` for what the numbers mean."""

    charges: Charges
    change: Change
    state: dict[str, Any]  # of the probe, up to this step
    scales: Tensor  # what |Q| of each charge could be, (charges,)
    eps: float  # rounding of the parameters
    why: str  # why there is no budget; empty if there is one

    @property
    def total(self) -> Tensor:
        """Drift since the start, (charges,)."""
        drift: Tensor = self.state["values"] - self.state["start"]
        return drift

    def every_step(self, step: int, size: float) -> Iterator[Measurement]:
        """Drift and first-order law of every family; `size` is the gradient's norm."""
        families, total, scales = self._families(), self.total, self.scales
        relative = total.abs() / scales.clamp_min(TINY)
        rows = []
        for where in families.values():
            norms = torch.stack(
                [x[where].norm() for x in (total, self.change.drift, scales)]
                + [relative[where].max(), relative[where].argmax().double()]
            )
            rows.append(norms)
        rounding = self.eps * math.sqrt(step + 1)  # a random walk of roundings
        for (family, where), row in zip(families.items(), torch.stack(rows).tolist(), strict=True):
            drift, moved, scale, worst, index = row
            scale = max(scale, TINY)
            yield Measurement("drift", drift / scale, family, floor=rounding)
            unit = self.charges.unit(where.start + int(index))
            yield Measurement("worst_drift", worst, family, note=unit)
            yield Measurement("step_drift", moved / scale, family)
        if math.isfinite(size):
            yield from self._first_order(size)

    def _first_order(self, size: float) -> Iterator[Measurement]:
        laws = {f: w for f, w in self.charges.generators.items() if not self._moves_outputs(f)}
        pairs = [
            torch.stack([self.change.slopes[w].norm(), self.state["lengths"][w].norm()])
            for w in laws.values()
        ]
        if not pairs:
            return
        for family, (slope, length) in zip(laws, torch.stack(pairs).tolist(), strict=True):
            noise, ratio = self.state["noise"][family]
            floor = max(noise / max(size, TINY), ratio, self.eps)
            value = slope / max(size * length, TINY)
            yield Measurement(
                "first_order", value, family, floor=floor, verdict=verdict(value, floor)
            )

    def closure(self, gap: Tensor, steps: int) -> Iterator[Measurement]:
        """How far the charges are from what the budgets of the last `steps` steps add up to."""
        for family, where in self._families().items():
            if self.why:
                yield Measurement(
                    "closure", math.nan, family, status="not_applicable", note=self.why
                )
                continue
            largest = torch.maximum(self.scales[where], self.state["scales"][where]).max()
            error = float(gap[where].abs().max()) / max(float(largest), TINY)
            floor = 4 * self.eps * math.sqrt(steps + 1)
            yield Measurement("closure", error, family, floor=floor, verdict=verdict(error, floor))

    def vectors(self) -> Iterator[Measurement]:
        """Charges and their drift, one number a unit."""
        relative = self.total / self.scales.clamp_min(TINY)
        for family, where in self._families().items():
            charge, drift = self.state["values"][where], relative[where]
            members = [m for m in self.charges.members if m.family == family and m.charges]
            note = "; ".join(f"{m.name}: {m.charges}" for m in members)
            for quantity, values in (("charge", charge), ("unit_drift", drift)):
                rms = float(values.square().mean().sqrt())
                vector = values.to("cpu", torch.float32).numpy()
                yield Measurement(quantity, rms, family, vector=vector, note=note)

    def budget(self) -> Iterator[Measurement]:
        """The causes of this step's drift and of the drift since the start, along the drifts."""
        if self.why:
            return
        for family, where in self._families().items():
            total, moved = self.total[where], self.change.drift[where]
            scale = max(float(self.scales[where].norm()), TINY)
            first = "implicit_bias" if self._moves_outputs(family) else "symmetry"
            for cause, term in self.change.causes.items():
                along = float(term[where] @ moved) / max(float(moved.norm()), TINY)
                yield Measurement(first if cause == "symmetry" else cause, along / scale, family)
            energy = float(total @ total)
            causes = self.state["causes"]
            shares = {
                c: float(causes[c][where] @ total) / energy if energy else 0.0 for c in CAUSES
            }
            shares["unmeasured"] = 1.0 - sum(shares.values()) if energy else 0.0
            for cause, share in shares.items():
                name = first if cause == "symmetry" else cause
                yield Measurement(f"share_{name}", share, family)

    def _families(self) -> dict[str, slice]:
        """Only what has charges: a bias shift obeys its laws and conserves nothing."""
        return {f: w for f, w in self.charges.families.items() if w.stop > w.start}

    def _moves_outputs(self, family: str) -> bool:
        return any(m.equivariant for m in self.charges.members if m.family == family)
