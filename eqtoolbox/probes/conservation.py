"""Conserved quantities: how far they drifted, and what made them drift."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from eqtoolbox.probe import Measurement, Probe
from eqtoolbox.probes.symmetries import FoundSymmetries
from eqtoolbox.record import Mode, verdict
from eqtoolbox.snapshot import NotApplicable, Snapshot
from eqtoolbox.symmetry.parameter import ContinuousSymmetry

CAUSES = ("symmetry", "decay", "optimizer", "finite_step")


@dataclass(frozen=True, kw_only=True)
class Conservation(Probe):
    """Drift of the charges Q of every symmetry, and its exact budget over one step.

    For an update d of parameters theta with gradient g, learning rate eta and decay gamma (each
    per parameter group), and generators K = grad Q:

        Q(theta + d) - Q(theta) = symmetry    -eta <K, g>          zero while the symmetry holds
                                + decay       -eta gamma <K, theta>
                                + optimizer   <K, d + eta (g + gamma theta)>   zero for plain SGD
                                + finite_step (Q(d) for quadratic, 0 for linear charges)

    Numbers are norms over all units of a family, relative to the norm of the charges' scale (what
    |Q| could be at these parameter sizes); a cause is counted along the drift, so that the
    budget's terms add up to the step's drift and the shares, with `share_unmeasured`, to 1.
    Shares since the start take each measured step as typical of those since the last measured.
    """

    name: ClassVar[str] = "conservation"
    headline: ClassVar[str] = "drift"
    mode: ClassVar[Mode] = "train"

    symmetries: FoundSymmetries = field(default_factory=FoundSymmetries, repr=False)

    def reference(self, snapshot: Snapshot, rng: torch.Generator) -> dict[str, Any]:
        families = _charged(self.symmetries.by_family(snapshot))
        start = {f: _charges(members, snapshot.before) for f, members in families.items()}
        causes = {
            f: {cause: torch.zeros_like(charge) for cause in CAUSES} for f, charge in start.items()
        }
        return {"start": start, "causes": causes, "measured": snapshot.step - 1}

    def measure(
        self, snapshot: Snapshot, reference: dict[str, Any], rng: torch.Generator
    ) -> Iterator[Measurement]:
        if snapshot.after is None:
            raise NotApplicable("no optimizer step here: drift is measured in step()")
        since = snapshot.step - reference["measured"]
        reference["measured"] = snapshot.step
        for family, members in _charged(self.symmetries.by_family(snapshot)).items():
            start = reference["start"].setdefault(family, _charges(members, snapshot.before))
            causes = reference["causes"].setdefault(family, {})
            yield from self._family(snapshot, family, members, start, causes, since)

    def _family(
        self,
        snapshot: Snapshot,
        family: str,
        members: list[ContinuousSymmetry],
        start: Tensor,
        causes: dict[str, Tensor],
        since: int,
    ) -> Iterator[Measurement]:
        assert snapshot.after is not None
        after = _charges(members, snapshot.after)
        scales = torch.cat([m.charge_scale(snapshot.before) for m in members])
        scale = float(scales.norm())
        drift = after - start
        worst, where = _worst(members, drift, scales)
        eps = max(torch.finfo(p.dtype).eps for p in snapshot.before.values())
        rounding = eps * math.sqrt(snapshot.step + 1)  # a random walk of roundings
        yield Measurement("drift", float(drift.norm()) / scale, family, floor=rounding)
        yield Measurement("worst_drift", worst, family, note=where)
        terms = budget(snapshot, members)
        if terms is None:
            note = "the optimizer has no learning rate or was given no gradient"
            yield Measurement("closure", float("nan"), family, status="not_applicable", note=note)
            return
        step_drift = after - _charges(members, snapshot.before)
        closure = step_drift - torch.stack([*terms.values()]).sum(0)
        yield Measurement("step_drift", float(step_drift.norm()) / scale, family)
        error = float(closure.abs().max() / scales.max())
        yield Measurement("closure", error, family, floor=1e-12, verdict=verdict(error, 1e-12))
        for cause, term in terms.items():
            along = float(term @ step_drift) / max(float(step_drift.norm()), 1e-300)
            yield Measurement(cause, along / scale, family)
            causes[cause] = causes.get(cause, torch.zeros_like(term)) + since * term
        energy = float(drift @ drift)
        shares = {c: float(causes[c] @ drift) / energy if energy else 0.0 for c in CAUSES}
        shares["unmeasured"] = 1.0 - sum(shares.values()) if energy else 0.0
        for cause, share in shares.items():
            yield Measurement(f"share_{cause}", share, family)


def budget(snapshot: Snapshot, members: list[ContinuousSymmetry]) -> dict[str, Tensor] | None:
    """The four causes of one step's drift, each (units,) in float64; see `Conservation`.

    None when the optimizer has no learning rate or there is no gradient.
    """
    gradient = snapshot.gradient
    if gradient is None:
        return None
    names = {n for m in members for n in m.names}
    rate, decay, sign = (dict.fromkeys(names, start) for start in (0.0, 0.0, 1.0))
    for name in names:
        group = snapshot.group_of(name)
        if group is not None:
            rate[name], decay[name] = group.lr, group.weight_decay
            sign[name] = -1.0 if group.maximize else 1.0
    if any(value != value for value in rate.values()):
        return None
    before = {n: snapshot.before[n].double() for n in names}
    pull = {n: -sign[n] * rate[n] * gradient[n].double() for n in names}
    shrink = {n: -rate[n] * decay[n] * before[n] for n in names}
    rest = {n: snapshot.update[n] - pull[n] - shrink[n] for n in names}
    return {
        "symmetry": torch.cat([m.pairing(before, pull) for m in members]),
        "decay": torch.cat([m.pairing(before, shrink) for m in members]),
        "optimizer": torch.cat([m.pairing(before, rest) for m in members]),
        "finite_step": torch.cat([m.finite_step(snapshot.update) for m in members]),
    }


def _charged(
    families: dict[str, list[ContinuousSymmetry]],
) -> dict[str, list[ContinuousSymmetry]]:
    """Only what conserves something: a bias shift obeys its laws and has no charge."""
    kept = {f: [m for m in members if m.charges] for f, members in families.items()}
    return {f: members for f, members in kept.items() if members}


def _charges(members: list[ContinuousSymmetry], params: dict[str, Tensor]) -> Tensor:
    return torch.cat([m.charge(params) for m in members])


def _worst(members: list[ContinuousSymmetry], drift: Tensor, scales: Tensor) -> tuple[float, str]:
    """Largest drift of one unit relative to its own scale, and which unit that is."""
    relative = drift.abs() / scales.clamp_min(1e-300)
    index = int(relative.argmax())
    value = float(relative[index])
    for member in members:
        if index < member.charges:
            return value, f"{member.name}, unit {index}"
        index -= member.charges
    raise AssertionError("more units than members have")
