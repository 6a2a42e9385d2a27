"""Equivariance of the model under transformations of its input."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from eqtoolbox.batch import tensors
from eqtoolbox.objective import Objective
from eqtoolbox.probe import Measurement, Probe
from eqtoolbox.record import Mode
from eqtoolbox.snapshot import NotApplicable, Snapshot
from eqtoolbox.symmetry import actions
from eqtoolbox.symmetry.actions import Action
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.culprit import Culprit, culprit, summary
from eqtoolbox.symmetry.each import Each
from eqtoolbox.symmetry.equivariance import EquivarianceResult, equivariance_error
from eqtoolbox.symmetry.group import Cyclic, CyclicTranslation, Dihedral, Flip, Group
from eqtoolbox.symmetry.lie import lie_derivative
from eqtoolbox.symmetry.tangent import has_tangent

OutputAction = Literal["auto", "invariant", "same"]
_GROWN = 3.0  # growth of the relative error over its smallest that is an alarm
IMAGE_SYMMETRIES = ("cyclic4", "dihedral4", "flip", "translation")


@dataclass(frozen=True, kw_only=True)
class EquivarianceError(Probe):
    """Violation of f(S_g x) = R_g f(x) in evaluation mode, at the parameters of the step.

    relative_error, worst, orbit_variance: see `eqtoolbox.symmetry.equivariance_error`.
    percent_of_loss: share of the loss that averaging predictions over the group would save.
    growth: relative_error over its smallest value in this run; `alarm` in the note from 3 on.
    consistency: share of samples whose class stays, for classifiers.
    lie_derivative, direction_ratio: for continuous groups whose actions know their tangents.

    A symmetry whose input action is `Each` sees all arguments of the model's call (a tuple, or a
    dict by name) and its whole output; the others see the first argument and the logits.
    """

    name: ClassVar[str] = "equivariance"
    headline: ClassVar[str] = "relative_error"
    mode: ClassVar[Mode] = "eval"

    symmetries: tuple[str | Equivariance, ...] = ("cyclic4", "flip", "translation")
    output: OutputAction = "auto"  # of named symmetries; auto: same if the output is an image
    samples: int = 8  # group elements per step and symmetry
    shadow: bool = False  # measure again in float64 what is unresolved
    locate: bool = False  # name the first broken layer of what is violated, for some 8 forwards

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

    def reference(self, snapshot: Snapshot, rng: torch.Generator) -> dict[str, float]:
        """The smallest relative error so far of each symmetry, which growth is told from."""
        return {}

    def measure(
        self, snapshot: Snapshot, reference: dict[str, float] | None, rng: torch.Generator
    ) -> Iterator[Measurement]:
        objective = snapshot.objective.single
        try:
            inputs = objective.inputs
        except LookupError as reason:
            raise NotApplicable(str(reason)) from reason
        if not any(_structured(entry) for entry in self.symmetries):
            _image_like(inputs)
        loss = None
        for entry in self.symmetries:
            name = entry if isinstance(entry, str) else entry.name
            try:
                if _structured(entry):
                    view = _View(objective, snapshot, objective.arguments, whole=True)
                else:
                    view = _View(objective, snapshot, _image_like(inputs), whole=False)
                    if loss is None:
                        with torch.no_grad():
                            loss = _loss_of_output(snapshot, view.function(inputs))
                symmetry = self._symmetry(entry, inputs, objective.call.output)
                yield from self._measured(view, symmetry, name, loss, reference, rng)
            except (NotApplicable, ValueError, TypeError, FloatingPointError) as reason:
                diverged = isinstance(reason, FloatingPointError)
                yield Measurement(
                    "relative_error",
                    math.nan,
                    name,
                    status="non_finite" if diverged else "not_applicable",
                    note=str(reason),
                )

    def _measured(
        self,
        view: "_View",
        symmetry: Equivariance,
        name: str,
        loss: Callable[[Tensor], Tensor] | None,
        reference: dict[str, float] | None,
        rng: torch.Generator,
    ) -> Iterator[Measurement]:
        result = equivariance_error(
            view.function,
            view.inputs,
            symmetry,
            samples=self.samples,
            generator=rng,
            loss=None if view.whole else loss,
        )
        if self.shadow and result.verdict == "unresolved":
            wide = view.to(torch.float64)
            result = equivariance_error(
                wide.function, wide.inputs, symmetry, samples=self.samples, generator=rng
            )
        grown = _growth(result, name, {} if reference is None else reference)
        where = view.culprit(symmetry) if self.locate and result.verdict == "violated" else ""
        notes = "; ".join(note for note in (result.note, grown.note, where) if note)
        yield from _numbers(replace(result, note=notes), name)
        yield grown
        if result.consistency is not None and view.classifies:
            yield Measurement("consistency", result.consistency, name)
        smooth = has_tangent(symmetry.input_action) and has_tangent(symmetry.output_action)
        if smooth and symmetry.group.generators():
            for found in lie_derivative(view.function, view.inputs, symmetry, generator=rng):
                target = f"{name}.{found.generator}"
                yield Measurement(
                    "lie_derivative",
                    found.rate,
                    target,
                    verdict=found.verdict,
                    note=found.note,
                )
                yield Measurement("direction_ratio", found.direction_ratio, target)

    def _symmetry(self, entry: str | Equivariance, inputs: Tensor, output: Any) -> Equivariance:
        if isinstance(entry, Equivariance):
            return entry
        output = _tensor(output)
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


@dataclass(frozen=True)
class _View:
    """The model at the parameters of the step as a function of a batch."""

    objective: Objective
    snapshot: Snapshot
    inputs: Any
    whole: bool  # all arguments and the whole output, or the first argument and the logits

    def function(self, x: Any) -> Any:
        params = self.snapshot.before
        if self.objective.dtype is not None:
            params = {n: p.to(self.objective.dtype) for n, p in params.items()}
        if self.whole:
            return self.objective.answer(params, x)
        return _tensor(self.objective.predict(params, x))

    def to(self, dtype: torch.dtype) -> "_View":
        objective = self.objective.to(dtype)
        return replace(
            self,
            objective=objective,
            inputs=objective.arguments if self.whole else objective.inputs,
        )

    @property
    def classifies(self) -> bool:
        """Whether the batch holds integers, one a sample."""
        leaves = tensors(self.objective.batch)
        return any(isinstance(x, Tensor) and x.dim() == 1 and not _floating(x) for x in leaves)

    def culprit(self, symmetry: Equivariance) -> str:
        """The first broken layer in words."""
        if len(self.objective.call.args) != 1 and not self.whole:
            return ""
        try:
            found: Culprit = self.objective.within(
                self.snapshot.before, lambda model: culprit(model, self.inputs, symmetry)
            )
        except (RuntimeError, ValueError, TypeError, LookupError):
            return ""
        return summary(found)


def _growth(result: EquivarianceResult, name: str, smallest: dict[str, float]) -> Measurement:
    """relative_error over its smallest value so far, never below the floor."""
    error = max(result.relative_error, result.floor)
    if math.isnan(result.relative_error):
        return Measurement("growth", math.nan, name, status="not_applicable", note="no error")
    before = smallest[name] = min(smallest.get(name, error), error)
    growth = error / before
    alarm = growth > _GROWN and result.verdict == "violated"
    return Measurement(
        "growth", growth, name, note=f"alarm: {growth:.1f} times its smallest" if alarm else ""
    )


def _structured(entry: str | Equivariance) -> bool:
    return isinstance(entry, Equivariance) and isinstance(entry.input_action, Each)


def _floating(x: Tensor) -> bool:
    return x.is_floating_point() or x.dtype == torch.bool


def _image_like(inputs: Any) -> Tensor:
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        return inputs
    kind = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
    raise NotApplicable(
        f"the model's first input is {kind}: image symmetries need a floating-point tensor; "
        "give an Equivariance with Each for structured inputs"
    )


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
    objective = snapshot.objective.single
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
