"""Forecast: what closed forms of SGD say the charges are now, beside what they are."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.probes.sgd import sgd
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import NotApplicable, Snapshot
from eqtoolbox.watch.state import State
from eqtoolbox.weights.charges.change import Change
from eqtoolbox.weights.charges.charges import Charges
from eqtoolbox.weights.charges.flow import ClosedForm

TINY = 1e-300


@dataclass(frozen=True, kw_only=True)
class Closed:
    """What the closed form is of every charge, as long as the optimizer's groups stay the same."""

    rates: list[tuple[float, float, float, bool, bool]]  # of the groups
    rows: Tensor  # learning rate, decay, momentum and degree of the charges, (4, stretches)
    why: dict[str, str]  # families without a closed form
    counts: tuple[int, ...] = ()  # charges of each stretch, a family; (): each is one

    def each(self) -> Tensor:
        """The rows of every charge: (4, charges)."""
        if not self.counts:
            return self.rows
        return self.rows.repeat_interleave(torch.tensor(self.counts), 1)


@dataclass(kw_only=True, eq=False)
class Forecast(State):
    """The closed form's course since it began, in a checkpoint under the names of 0.1."""

    at: int | None = None  # the step up to which it goes; None: not begun
    since: int = 0  # the step after which it began
    start: Tensor | None = None  # charges then
    course: ClosedForm | None = None
    closed: Closed | None = None
    told: list[str] = field(default_factory=list)  # families of which it was said why not

    def state_dict(self) -> dict[str, Any]:
        """The course, the rates and what was told, each under a name of its own."""
        found: dict[str, Any] = {"forecast_told": list(self.told)}
        if self.course is not None:
            begun = {"at": self.at, "since": self.since, "start": self.start}
            found["forecast"] = begun | vars(self.course)
        if self.closed is not None:
            known = self.closed
            own = {"rates": known.rates, "rows": known.each(), "why": known.why}
            found["forecast_rates"] = own
        return found

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take what was saved; what is missing starts anew."""
        begun, closed = saved.get("forecast"), saved.get("forecast_rates")
        if begun is not None:
            self.at, self.since, self.start = begun["at"], begun["since"], begun["start"]
            self.course = ClosedForm(charge=begun["charge"], slope=begun["slope"])
        self.closed = None if closed is None else Closed(**closed)
        self.told = list(saved.get("forecast_told", ()))

    def advance(
        self,
        charges: Charges,
        snapshot: Snapshot,
        change: Change,
        *,
        values: Tensor,
        start: Tensor,
        stepped: bool,
    ) -> None:
        """One step of the closed form (`ClosedForm`), from rates and Q(d) alone, for all at once.

        Begun at the first step measured, whose own drift is taken as it was, and anew after steps
        that were not.

        Args:
            charges: of all symmetries.
            snapshot: of the step.
            change: what the step did to the charges.
            values: the charges after the step.
            start: the charges at the first step of all.
            stepped: False where loss scaling skipped the step.
        """
        goes_on = self.at is not None and self.at == snapshot.step - 1
        if goes_on and not stepped:
            self.at = snapshot.step
        if not stepped:
            return
        self.closed = _closed(charges, snapshot, self.closed)
        lr, decay, momentum, degree = self.closed.each()
        course, force = self.course, change.finite_step
        if course is not None and goes_on and len(course.charge) == charges.count:
            course = course.step(force, lr=lr, decay=decay, momentum=momentum, degree=degree)
        elif bool(((lr == 0) & (degree > 0)).any()):
            return  # says nothing of the velocity: begin later
        else:
            first, self.since = self.at is None, snapshot.step
            self.start = start if first else values  # then it stands beside `drift`
            course = ClosedForm.after(values, change.drift - force, force, lr=lr.clamp_min(TINY))
        self.course, self.at = course, snapshot.step


def report(
    charges: Charges, known: Forecast, values: Tensor, scales: Tensor, eps: float
) -> Iterator[Measurement]:
    """Drift since the forecast began, predicted, and how far from it the charges are.

    Relative to the charges' scales. Of families without a closed form the reason, once.
    """
    if known.course is None or known.start is None or known.at is None or known.closed is None:
        return
    charge, start, steps = known.course.charge, known.start, known.at - known.since
    for family, where in _families(charges).items():
        why = known.closed.why.get(family)
        if why is not None:
            if family not in known.told:
                known.told.append(family)
                yield Measurement(
                    "forecast_error", math.nan, family, status="not_applicable", note=why
                )
            continue
        if not steps:
            continue
        size = max(float(scales[where].norm()), TINY)
        expected = float((charge - start)[where].norm()) / size
        moved = float((values - start)[where].norm()) / size
        error = float((values - charge)[where].norm()) / size
        note = f"measured {moved:.3e} since step {known.since}"
        near = any(m.status == "approximate" for m in charges.members if m.family == family)
        note += "; approximate symmetry, which epsilon moves too" if near else ""
        facts = {"measured": moved} if math.isfinite(moved) else {}
        facts |= {"since": known.since, "approximate": near}
        yield Measurement("forecast", expected, family, note=note, facts=facts)
        yield Measurement("forecast_error", error, family, floor=eps * math.sqrt(steps + 1))


def _families(charges: Charges) -> dict[str, slice]:
    """Families of conserved charges; those of equivariances move by what the outputs do."""
    moving = {m.family for m in charges.members if m.equivariant}
    return {f: w for f, w in charges.families.items() if w.stop > w.start and f not in moving}


def _closed(charges: Charges, snapshot: Snapshot, known: Closed | None) -> Closed:
    """What is known, made anew where the optimizer's groups changed.

    Charges without a closed form, and those of equivariances, stay as they are.
    """
    rates = [(g.lr, g.weight_decay, g.momentum, g.nesterov, g.maximize) for g in snapshot.groups]
    counts = tuple(w.stop - w.start for w in charges.families.values())
    if known is not None and known.rates == rates and known.counts == counts:
        return known
    rows = torch.zeros(4, len(counts), dtype=torch.float64)
    why: dict[str, str] = {}
    linear = {m.family for m in charges.members if not m.form.quadratic}
    conserved, every = _families(charges), list(charges.families)
    for family in conserved:
        names = {n for m in charges.members if m.family == family for n in m.names}
        try:
            own = sgd(snapshot, names)
        except NotApplicable as reason:
            why[family] = str(reason)
            continue
        numbers = own.lr, own.decay, own.momentum, 1.0 if family in linear else 2.0
        rows[:, every.index(family)] = rows.new_tensor(numbers)
    return Closed(rates=rates, rows=rows, why=why, counts=counts)
