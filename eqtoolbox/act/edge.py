"""A bearing: the curvature at one step, and how near to unstable it makes a step at given rates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eqtoolbox.expect.fit import fitted
from eqtoolbox.expect.kinds import Natural
from eqtoolbox.replay.unwrap import processes
from eqtoolbox.watch.monitor import Monitor
from eqtoolbox.watch.snapshot import ParameterGroup
from eqtoolbox.watch.threshold import threshold

STABILITY, SHARPNESS = "curvature/stability", "tracking/sharpness"
HEADLINE = "curvature/sharpness"  # which tells that there is no stability


@dataclass(frozen=True, kw_only=True)
class EdgeReading:
    """One number of a probe: the sharpness, or the stability of the step at the rates it had."""

    step: int
    name: str  # of the record
    value: float
    error: float  # of the value, in its unit
    rates: tuple[float, ...]  # of each group at that step

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} ± {self.error:.2g} at step {self.step}"

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "EdgeReading":
        """From the fields as a checkpoint has them."""
        step = fitted("step", saved["step"], Natural)
        rates = tuple(fitted("rates", saved["rates"], Sequence[float]))
        value, error = (fitted(k, saved[k], float) for k in ("value", "error"))
        return cls(step=step, name=str(saved["name"]), value=value, error=error, rates=rates)

    def at(self, groups: Sequence[ParameterGroup]) -> float:
        """Stability of a step with these groups; of several rates an upper bound."""
        return max(self._scales(groups)) * self.value

    def shares(self, groups: Sequence[ParameterGroup], limit: float) -> tuple[float, ...]:
        """Of its rate, what each group may take for a stability of `limit`, whatever the error."""
        scales = self._scales(groups)
        if not self.name.endswith("sharpness"):  # of a metric that all rates are part of
            scales = (max(scales),) * len(scales)
        largest = self.value + self.error
        return tuple(min(1.0, limit / (s * largest)) if s * largest > 0 else 1.0 for s in scales)

    def _scales(self, groups: Sequence[ParameterGroup]) -> tuple[float, ...]:
        """By how much the rate of each group multiplies the value."""
        rates = tuple(group.lr for group in groups)
        if self.name.endswith("sharpness"):
            return tuple(lr / threshold(group) for lr, group in zip(rates, groups, strict=True))
        return tuple(_times(now, then) for now, then in zip(rates, self._known(rates), strict=True))

    def _known(self, rates: Sequence[float]) -> tuple[float, ...]:
        """The rates of the step; of groups that were added since, zero."""
        return (*self.rates, *(0.0 for _ in rates[len(self.rates) :]))[: len(rates)]


def _times(now: float, then: float) -> float:
    """How many times as large a rate is; of one that was zero nothing is known."""
    return now / then if then > 0 else math.inf if now > 0 else 0.0


def readable(monitor: Monitor, do: str) -> tuple[str, ...]:
    """Names of the records that say how stable the steps of this training are."""
    if not monitor.attached:
        raise ValueError("guard expected a monitor that is attached, got one that is not")
    probes = {s.probe.name for s in monitor.probes}
    kinds = dict.fromkeys(type(o).__name__ for o in monitor.optimizers)
    plain = [*kinds] == ["SGD"]
    names = ((STABILITY,) if "curvature" in probes else ()) + (
        (SHARPNESS,) if "tracking" in probes and plain else ()
    )
    if not names:
        add = "Tracking() or Curvature()" if plain else "Curvature(k=1, smallest=False)"
        why = "" if plain else f", as steps of {'+'.join(kinds)} are stable in its own metric"
        raise ValueError(
            f"guard needs a probe of the curvature, got {', '.join(sorted(probes)) or 'none'}; add "
            f"{add} of eqtoolbox.probes to attach(probes=[...]){why}"
        )
    if do == "cap" and len(monitor.optimizers) > 1:
        raise ValueError(
            f"do='cap' expected one optimizer, got {len(monitor.optimizers)}, whose steps are "
            "measured together; use do='warn'"
        )
    if do == "cap" and processes() > 1:
        raise ValueError(
            f"do='cap' expected one process, got {processes()}: each would cap by its own batch, "
            "and their parameters would part; use do='warn'"
        )
    return names
