"""Equivariance of the model under transformations of its input."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from eqtoolbox.expect.bounds import OWN, Bound
from eqtoolbox.expect.checked import checked
from eqtoolbox.probes.claims import (
    Claim,
    Elements,
    OutputAction,
    as_claims,
    claimed,
    name_of,
    require_tensor,
    structured,
    told_unmeasured,
)
from eqtoolbox.probes.growth import Known, Seen, explained, growth
from eqtoolbox.probes.lie_rates import derivatives, letters
from eqtoolbox.probes.prediction import Prediction, predicting
from eqtoolbox.probes.view import View
from eqtoolbox.record.record import Mode, Status
from eqtoolbox.replay.reading import opened
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.culprit import Culprit, summary
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.judged import of_batches
from eqtoolbox.symmetry.result import EquivarianceResult
from eqtoolbox.symmetry.structure import tensors
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.snapshot import NotApplicable, Snapshot
from eqtoolbox.watch.state import State
from eqtoolbox.world.world import World

PEAK = Bound("> 0, the range of the output", lambda x: bool(x > 0))


@checked
@dataclass(frozen=True, kw_only=True)
class EquivarianceError(Probe):
    """Violation of f(S_g x) = R_g f(x) in evaluation mode, at the parameters of the step.

    relative_error, worst, orbit_variance: see `eqtoolbox.symmetry.equivariance_error`.
    percent_of_loss: share of the loss that averaging predictions over the group would save; of
    each output beside it, where the output has several and the loss is a sum over them.
    growth: relative_error over the smallest in this run of a model that knew its data; `alarm` in
    the note where a symmetry that it had is being lost.
    explained: share of the loss that the model saves by looking at the input.
    consistency: share of samples whose class stays, for classifiers.
    decibels: EQ-T or EQ-R, peak signal-to-noise of the violation, for models that return images.
    lie_derivative, direction_ratio: for continuous groups whose actions know their tangents.
    layer_error: with `locate`, of the network up to each layer, where the claim is violated.
    layer_share: with `layers`, what each layer adds to a violated Lie derivative; they sum to 1.

    A symmetry whose input action is `Each` sees all arguments of the model's call (a tuple, or a
    dict by name) and its whole output, with dataclasses and named tuples as dicts of their fields;
    the others see the first argument and the logits.

    f(x) comes from the loss's own evaluation and is shared by all symmetries; the laws of the
    actions are checked when a symmetry meets new shapes.

    Args:
        symmetries: names of image symmetries, or claims (`Equivariance`).
        output: what named symmetries do to outputs; auto: the same if the output is an image.
        samples: group elements per step and symmetry, the identity among them.
        peak: range of the values of output images, for decibels.
        shadow: measure again in float64 what is unresolved.
        locate: name the first broken layer of what is violated, for some 8 forwards.
        layers: shares of layers in violated Lie derivatives, a derivative a layer each.

    Example:
        >>> EquivarianceError(symmetries=["flip"], locate=True).samples
        8
    """

    name: ClassVar[str] = "equivariance"
    headline: ClassVar[str] = "relative_error"
    sharded: ClassVar[bool] = True
    mode: ClassVar[Mode] = "eval"
    graphs: ClassVar[float] = 1.0
    copies: ClassVar[float] = 1.0
    state: ClassVar[type[State]] = Known

    symmetries: Annotated[tuple[Claim, ...], OWN] = ("cyclic4", "flip", "translation")
    output: OutputAction = "auto"
    samples: Elements = 8
    peak: Annotated[float, PEAK] = 2.0
    shadow: bool = False
    locate: bool = False
    layers: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "symmetries", as_claims(self.symmetries))

    def measure(
        self, snapshot: Snapshot, reference: Known, rng: torch.Generator
    ) -> Iterator[Measurement]:
        def body(f: Prediction) -> list[Measurement]:
            if not any(structured(entry) for entry in self.symmetries):
                require_tensor(f.inputs)
            loss = f.loss()
            known = explained(opened(f.call.output), loss)
            found = [] if known is None else [Measurement("explained", known)]
            world = snapshot.world if snapshot.world.inside else World()
            for entry in self.symmetries:
                drawn = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=rng)))
                rows = list(self._one(f, entry, loss, known, reference, drawn, world))
                found += told_unmeasured(entry, rows)
            return found

        try:
            yield from predicting(snapshot.objective, snapshot.before, body)
        except NotApplicable as reason:  # of all claims alike
            row = Measurement("relative_error", math.nan, status="not_applicable", note=str(reason))
            for entry in self.symmetries:
                yield from list(told_unmeasured(entry, [row]))[:-1]
            raise

    def _one(
        self,
        f: Prediction,
        entry: Claim,
        loss: Callable[[Any], Tensor] | None,
        known: float | None,
        memory: Known,
        rng: torch.Generator,
        world: World,
    ) -> Iterator[Measurement]:
        name = name_of(entry)
        why, own = None, None
        try:
            view = View.of(f, entry)
            symmetry = view.claim(claimed(entry, view.inputs, view.outputs, self.output))
            own = self._measured(view, symmetry, name, loss, memory, rng)
        except (NotApplicable, ValueError, TypeError, FloatingPointError) as reason:
            why = isinstance(reason, FloatingPointError), str(reason)
        shares = world.each(f"claim {name}", (own, 0 if own is None else view.samples, why))
        failed = next((why for _, _, why in shares if why is not None), None)
        if failed is not None:
            diverged, note = failed
            status: Status = "non_finite" if diverged else "not_applicable"
            yield Measurement("relative_error", math.nan, name, status=status, note=note)
            return
        results, counts, _ = zip(*shares, strict=True)
        result = of_batches(results, counts)
        classifies = f.classifies and not view.parts
        seen = Seen(result=result, samples=view.samples, explained=known, classifies=classifies)
        grown = growth(seen, name, memory.baselines)
        blamed = view.culprit(symmetry) if self.locate and result.verdict == "violated" else None
        where = "" if blamed is None else summary(blamed)
        lost = grown.note if grown.facts.get("lost") else ""
        notes = "; ".join(note for note in (result.note, lost, where) if note)
        yield from _numbers(replace(result, note=notes), name, {"blame": where} if where else {})
        yield grown
        if blamed is not None:
            yield from _layer_errors(blamed, name)
        if result.consistency is not None and classifies:
            yield Measurement("consistency", result.consistency, name)
        if view.images and symmetry.output_action is not trivial and result.mean_square != 0:
            yield Measurement("decibels", result.decibels(self.peak), name, unit="dB")
        if symmetry.group.generators():
            yield from derivatives(view, symmetry, name, rng, self.layers, world)

    def _measured(
        self,
        view: View,
        symmetry: Equivariance,
        name: str,
        loss: Callable[[Any], Tensor] | None,
        memory: Known,
        rng: torch.Generator,
    ) -> EquivarianceResult:
        shapes = repr([tuple(x.shape) for x in tensors((view.inputs, view.outputs))])
        result = equivariance_error(
            view.function,
            view.inputs,
            symmetry,
            samples=self.samples,
            generator=rng,
            loss=view.loss(loss),
            outputs=view.outputs,
            check=memory.fits.get(name) != shapes,
        )
        memory.fits[name] = shapes
        if not self.shadow or result.verdict != "unresolved":
            return result

        def again(wide: Prediction) -> EquivarianceResult:
            same = replace(view, f=wide)
            return equivariance_error(
                same.function,
                same.inputs,
                symmetry,
                samples=self.samples,
                generator=rng,
                outputs=same.outputs,
                check=False,
            )

        return replace(view.f.in_float64(again), note="in float64")


def _layer_errors(found: Culprit, name: str) -> Iterator[Measurement]:
    """The violation of the network up to each layer, where an action fits its output."""
    for i, e in enumerate(found.layers):
        if not math.isnan(e.error):
            target = f"{name}/{i:02d}.{letters(e.layer)}"
            note = f"{e.kind}, {e.action}"
            yield Measurement("layer_error", e.error, target, floor=e.rounding, note=note)


def _numbers(result: EquivarianceResult, name: str, facts: dict[str, str]) -> Iterator[Measurement]:
    yield Measurement(
        "relative_error",
        result.relative_error,
        name,
        stderr=result.stderr,
        floor=result.floor,
        verdict=result.verdict,
        note=result.note,
        facts=facts,
    )
    yield Measurement("worst", result.worst, name, note=f"element {result.worst_element}")
    share = result.orbit_variance
    if math.isnan(share):
        note = "a single sample, outputs that do not vary, or elements that cannot be undone"
        yield Measurement("orbit_variance", share, name, status="not_applicable", note=note)
    else:
        floor, stderr = result.orbit_variance_floor, result.orbit_variance_stderr
        yield Measurement("orbit_variance", share, name, floor=floor, stderr=stderr)
    if result.percent_of_loss is not None:
        percent = result.percent_of_loss
        stderr = result.stderr_of(percent)
        yield Measurement("percent_of_loss", percent, name, unit="%", stderr=stderr)
    for leaf, percent in result.loss_parts.items():
        target = f"{name}/{letters(leaf)}"
        stderr = result.stderr_of(percent)
        yield Measurement("percent_of_loss", percent, target, unit="%", stderr=stderr)
