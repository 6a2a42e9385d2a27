"""Growth: how far an error has grown since the model had the symmetry, and whether it is lost."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.symmetry.result import EquivarianceResult
from eqtoolbox.symmetry.structure import Tree, on_tensors, tensors
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.state import State

GROWN = 3.0  # growth of the relative error over that of the baseline that is an alarm
PRICE = 1.0  # percent of the loss below which a violation is not worth one
KNOWS = 0.1  # share of the loss that knowing the input saves, from which a model is informative
SAME = 0.8  # share of samples that keep their class, from which a classifier has the symmetry
FEWER = 0.1  # of the samples fewer that keep it, and growth from which that is an alarm, too
SOMEWHAT = 1.5
SAMPLES = 8  # below so many no share of samples is a baseline


@dataclass(kw_only=True, eq=False)
class Baselines(State):
    """The smallest errors of a run, by symmetry."""

    smallest: dict[str, float] = field(default_factory=dict)
    baseline: dict[str, dict[str, Any]] = field(default_factory=dict)  # at informative steps


@dataclass(kw_only=True, eq=False)
class Known(State):
    """What is known of the symmetries by name, from the steps before."""

    fits: dict[str, str] = field(default_factory=dict)  # the shapes that their actions fit
    baselines: Baselines = field(default_factory=Baselines)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is known of one symmetry at one step."""

    result: EquivarianceResult
    samples: int
    explained: float | None  # share of the loss that knowing the input saves; None: not known
    classifies: bool

    @property
    def informative(self) -> bool:
        """Whether the error says something of the symmetry: that of an untrained network does not.

        Its outputs hardly depend on the input, so that any two are near each other. What holds to
        rounding holds for whatever weights.
        """
        if self.result.verdict == "holds":
            return True
        return self.explained is not None and self.explained >= KNOWS

    @property
    def consistency(self) -> float | None:
        enough = self.classifies and self.samples >= SAMPLES
        return self.result.consistency if enough else None


def explained(outputs: Tree, loss: Callable[[Any], Tensor] | None) -> float | None:
    """Share of its loss that the model saves by looking: 1 - l(f(x)) / l(E_x f(x)).

    None where the loss is not known, or there is one sample only.

    Example:
        >>> y = torch.tensor([[1.0], [3.0]])
        >>> explained(y, lambda f: (f - torch.tensor([[1.0], [2.0]])).square().sum())
        0.0
    """
    values = tensors(outputs)
    if loss is None or any(x.dim() == 0 or len(x) < 2 or not x.is_floating_point() for x in values):
        return None
    blind = on_tensors(lambda y: y.mean(0, keepdim=True).expand_as(y), outputs)
    try:
        with torch.no_grad():
            knowing, not_knowing = float(loss(outputs)), float(loss(blind))
    except (RuntimeError, TypeError, ValueError):
        return None
    return 1.0 - knowing / not_knowing if 0.0 < not_knowing < math.inf else None


def growth(seen: Seen, name: str, memory: Baselines) -> Measurement:
    """relative_error over that of the baseline, never below the floor; `alarm` where it is lost.

    The baseline is the smallest error at an informative step; before there is one, the smallest.

    Args:
        seen: this step.
        name: of the symmetry.
        memory: of the steps before; brought up to date.
    """
    result = seen.result
    if math.isnan(result.relative_error):
        return Measurement("growth", math.nan, name, status="not_applicable", note="no error")
    error = max(result.relative_error, result.floor)
    least = memory.smallest[name] = min(memory.smallest.get(name, error), error)
    known = memory.baseline.get(name)
    if seen.informative and (known is None or error < known["error"]):
        memory.baseline[name] = known = {"error": error, "consistency": seen.consistency}
    if known is None:
        note = "no baseline: the model does not know its data yet"
        return Measurement("growth", error / least, name, note=note)
    grown = error / known["error"]
    why, facts = "", dict[str, Any]()
    if result.verdict == "violated":
        why, facts = _lost(seen, grown, known["consistency"])
    return Measurement("growth", grown, name, note=why, facts=facts)


def _lost(seen: Seen, grown: float, before: float | None) -> tuple[str, dict[str, Any]]:
    """Why a violated symmetry is being lost, in words and as facts; empty where it is not."""
    alarm, percent = f"alarm: {grown:.1f} times its smallest", seen.result.percent_of_loss
    now = seen.consistency
    if before is not None and now is not None and before >= SAME:
        noise = 2 * math.sqrt(now * (1 - now) / seen.samples)
        if before - now > max(FEWER, noise) and grown > SOMEWHAT:
            why = f"{alarm}; {now:.0%} of moved samples keep their class, {before:.0%} did"
            return why, {"lost": True, "keep": now, "kept": before}
    paid = percent is None or math.isnan(percent) or percent >= PRICE
    return (alarm, {"lost": True}) if grown > GROWN and paid else ("", {})
