"""Equivariance of the model under transformations of its input."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from eqtoolbox.probe import Measurement, Probe
from eqtoolbox.record import Mode
from eqtoolbox.snapshot import NotApplicable, Snapshot
from eqtoolbox.symmetry import actions
from eqtoolbox.symmetry.actions import Action
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.equivariance import EquivarianceResult, equivariance_error
from eqtoolbox.symmetry.group import Cyclic, CyclicTranslation, Dihedral, Flip, Group

OutputAction = Literal["auto", "invariant", "same"]
IMAGE_SYMMETRIES = ("cyclic4", "dihedral4", "flip", "translation")


@dataclass(frozen=True, kw_only=True)
class EquivarianceError(Probe):
    """Violation of f(S_g x) = R_g f(x) in evaluation mode, at the parameters of the step.

    relative_error, worst, orbit_variance: see `eqtoolbox.symmetry.equivariance_error`.
    percent_of_loss: share of the loss that averaging predictions over the group would save.
    """

    name: ClassVar[str] = "equivariance"
    headline: ClassVar[str] = "relative_error"
    mode: ClassVar[Mode] = "eval"

    symmetries: tuple[str | Equivariance, ...] = ("cyclic4", "flip", "translation")
    output: OutputAction = "auto"  # of named symmetries; auto: same if the output is an image
    samples: int = 8  # group elements per step and symmetry

    def __post_init__(self) -> None:
        object.__setattr__(self, "symmetries", tuple(self.symmetries))
        unknown = [s for s in self.symmetries if isinstance(s, str) and s not in IMAGE_SYMMETRIES]
        if unknown or not self.symmetries:
            raise ValueError(
                f"expected symmetries among {', '.join(IMAGE_SYMMETRIES)} or Equivariance objects, "
                f"got {list(self.symmetries)}"
            )
        if self.samples < 1:
            raise ValueError(
                f"samples must be >= 1, got {self.samples}; use every(0) to switch off"
            )

    def measure(
        self, snapshot: Snapshot, reference: None, rng: torch.Generator
    ) -> Iterator[Measurement]:
        objective = snapshot.objective
        try:
            inputs = objective.inputs
        except LookupError as reason:
            raise NotApplicable(str(reason)) from reason
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            kind = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
            raise NotApplicable(
                f"the model's first input is {kind}: image symmetries need a floating-point tensor"
            )

        def function(x: Tensor) -> Tensor:
            return _tensor(objective.predict(snapshot.before, x))

        with torch.no_grad():
            loss = _loss_of_output(snapshot, function(inputs))
            for entry in self.symmetries:
                name = entry if isinstance(entry, str) else entry.name
                try:
                    symmetry = self._symmetry(entry, inputs, _tensor(objective.call.output))
                    result = equivariance_error(
                        function, inputs, symmetry, samples=self.samples, generator=rng, loss=loss
                    )
                except (NotApplicable, ValueError, TypeError, FloatingPointError) as reason:
                    yield Measurement(
                        "relative_error",
                        math.nan,
                        name,
                        status="non_finite"
                        if isinstance(reason, FloatingPointError)
                        else "not_applicable",
                        note=str(reason),
                    )
                    continue
                yield from _numbers(result, name)

    def _symmetry(self, entry: str | Equivariance, inputs: Tensor, output: Tensor) -> Equivariance:
        if isinstance(entry, Equivariance):
            return entry
        if inputs.dim() < 4:
            raise NotApplicable(
                f"{entry} acts on images (batch, channels, height, width), got inputs of shape "
                f"{tuple(inputs.shape)}"
            )
        height, width = inputs.shape[-2:]
        if entry in ("cyclic4", "dihedral4") and height != width:
            raise NotApplicable(f"quarter turns need height == width, got {height}x{width}")
        same = output.dim() >= 4 and output.shape[-2:] == inputs.shape[-2:]
        if self.output != "auto":
            same = self.output == "same"
        claims: dict[str, tuple[Group, Action]] = {
            "cyclic4": (Cyclic(4), actions.quarter_turn),
            "dihedral4": (Dihedral(4), actions.dihedral),
            "flip": (Flip(), actions.flip),
            "translation": (CyclicTranslation((height, width)), actions.roll),
        }
        group, action = claims[entry]
        return Equivariance(group, action, action if same else actions.trivial)


def _numbers(result: EquivarianceResult, name: str) -> Iterator[Measurement]:
    yield Measurement(
        "relative_error",
        result.relative_error,
        name,
        stderr=result.stderr,
        floor=result.floor,
        verdict=result.verdict,
        note=result.note,
    )
    yield Measurement("worst", result.worst, name, note=f"element {result.worst_element}")
    if math.isnan(result.orbit_variance):
        note = "a single sample, or outputs that do not vary"
        yield Measurement("orbit_variance", math.nan, name, status="not_applicable", note=note)
    else:
        floor = result.orbit_variance_floor
        yield Measurement("orbit_variance", result.orbit_variance, name, floor=floor)
    if result.percent_of_loss is not None:
        yield Measurement("percent_of_loss", result.percent_of_loss, name, unit="%")


def _loss_of_output(snapshot: Snapshot, output: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The loss as a function of the output, if it is one: evaluated so, it must be itself."""
    objective = snapshot.objective
    if not isinstance(objective.call.output, Tensor):
        return None

    def loss(y: Tensor) -> Tensor:
        return objective.loss_of_output(snapshot.before, y)

    try:
        once, again = float(loss(output)), float(loss(output))
        whole = float(objective.evaluated(snapshot.before))
    except (RuntimeError, TypeError, ValueError):
        return None
    agrees = math.isclose(once, whole, rel_tol=1e-4) and once == again
    return loss if agrees else None


def _tensor(output: Any) -> Tensor:
    """The output itself, its `.logits`, or the first tensor in it."""
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else None
    found = getattr(output, "logits", logits)
    if found is None and isinstance(output, (tuple, list)):
        found = next((part for part in output if isinstance(part, Tensor)), None)
    if not isinstance(found, Tensor):
        raise NotApplicable(f"no output tensor in {type(output).__name__}")
    return found
