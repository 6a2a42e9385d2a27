"""Forecast: what closed forms of SGD say the charges are now, beside what they are."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.probes.sgd import sgd
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import NotApplicable, Snapshot
from eqtoolbox.weights.charges.charges import Change, Charges
from eqtoolbox.weights.charges.flow import Course

TINY = 1e-300


def advance(
    charges: Charges, snapshot: Snapshot, change: Change, state: dict[str, Any], stepped: bool
) -> None:
    """One step of the closed form (`Course`), from rates and Q(d) alone, for all charges at once.

    Begun at the first step measured, whose own drift is taken as it was, and anew after steps that
    were not.

    Args:
        charges: of all symmetries.
        snapshot: of the step.
        change: what the step did to the charges.
        state: of the probe, after the step; `forecast` in it is renewed.
        stepped: False where loss scaling skipped the step.
    """
    before = state.get("forecast")
    known = before is not None and before["at"] == snapshot.step - 1
    if before is not None and known and not stepped:
        before["at"] = snapshot.step
    if not stepped:
        return
    rates = _rates(charges, snapshot, state)
    if before is not None and known and len(before["charge"]) == charges.count:
        course = Course(charge=before["charge"], slope=before["slope"])
        lr, decay, momentum, degree = rates["rows"]
        course = course.step(
            change.finite_step, lr=lr, decay=decay, momentum=momentum, degree=degree
        )
        since, start = before["since"], before["start"]
    else:
        lr, degree = rates["rows"][0], rates["rows"][3]
        if bool(((lr == 0) & (degree > 0)).any()):  # says nothing of the velocity: begin later
            return
        paired, here, since = change.drift - change.finite_step, state["values"], snapshot.step
        course = Course.after(here, paired, change.finite_step, lr=lr.clamp_min(TINY))
        start = state["start"] if before is None else here  # then it stands beside `drift`
    state["forecast"] = {
        "at": snapshot.step,
        "since": since,
        "start": start,
        "charge": course.charge,
        "slope": course.slope,
    }


def report(
    charges: Charges, state: dict[str, Any], scales: Tensor, eps: float
) -> Iterator[Measurement]:
    """Drift since the forecast began, predicted, and how far from it the charges are.

    Relative to the charges' scales. Of families without a closed form the reason, once.
    """
    found = state.get("forecast")
    if found is None:
        return
    told = state.setdefault("forecast_told", [])
    steps = found["at"] - found["since"]
    for family, where in _families(charges).items():
        why = state["forecast_rates"]["why"].get(family)
        if why is not None:
            if family not in told:
                told.append(family)
                yield Measurement(
                    "forecast_error", math.nan, family, status="not_applicable", note=why
                )
            continue
        if not steps:
            continue
        size = max(float(scales[where].norm()), TINY)
        expected = float((found["charge"] - found["start"])[where].norm()) / size
        moved = float((state["values"] - found["start"])[where].norm()) / size
        error = float((state["values"] - found["charge"])[where].norm()) / size
        note = f"measured {moved:.3e} since step {found['since']}"
        near = any(m.status == "approximate" for m in charges.members if m.family == family)
        note += "; approximate symmetry, which epsilon moves too" if near else ""
        facts = {"measured": moved} if math.isfinite(moved) else {}
        facts |= {"since": found["since"], "approximate": near}
        yield Measurement("forecast", expected, family, note=note, facts=facts)
        yield Measurement("forecast_error", error, family, floor=eps * math.sqrt(steps + 1))


def _families(charges: Charges) -> dict[str, slice]:
    """Families of conserved charges; those of equivariances move by what the outputs do."""
    moving = {m.family for m in charges.members if m.equivariant}
    return {f: w for f, w in charges.families.items() if w.stop > w.start and f not in moving}


def _rates(charges: Charges, snapshot: Snapshot, state: dict[str, Any]) -> dict[str, Any]:
    """Learning rate, decay, momentum and degree of every charge, and what has no closed form.

    Made anew where the optimizer's groups changed. Charges without a closed form, and those of
    equivariances, stay as they are.
    """
    rates = [(g.lr, g.weight_decay, g.momentum, g.nesterov, g.maximize) for g in snapshot.groups]
    known: dict[str, Any] = state.get("forecast_rates", {})
    if known.get("rates") == rates and known["rows"].shape[1] == charges.count:
        return known
    rows = torch.zeros_like(state["values"].expand(4, -1))
    why: dict[str, str] = {}
    linear = {m.family for kind in charges.kinds if not kind.quadratic for m in kind.members}
    for family, where in _families(charges).items():
        names = {n for m in charges.members if m.family == family for n in m.names}
        try:
            own = sgd(snapshot, names)
        except NotApplicable as reason:
            why[family] = str(reason)
            continue
        values = own.lr, own.decay, own.momentum, 1.0 if family in linear else 2.0
        rows[:, where] = rows.new_tensor(values)[:, None]
    state["forecast_rates"] = {"rates": rates, "rows": rows, "why": why}
    return dict(state["forecast_rates"])
