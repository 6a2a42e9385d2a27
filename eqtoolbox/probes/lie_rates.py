"""Lie derivatives of the model under transformations of its input, as rows of a probe."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from eqtoolbox.probes.view import View
from eqtoolbox.record.record import Verdict
from eqtoolbox.symmetry.actions.tangent import NoTangent
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.layerwise import layer_shares
from eqtoolbox.symmetry.lie import CUT, FLAT, LieDerivative, lie_derivative
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.world.world import World

# samples of a rank, and of each generator the rate and its verdict
_Share = tuple[int, list[tuple[float, Verdict]]]


def derivatives(
    view: View,
    symmetry: Equivariance,
    name: str,
    rng: torch.Generator,
    layers: bool,
    world: World,
) -> Iterator[Measurement]:
    """One rate and direction ratio a generator; why there are none where none can be taken.

    Args:
        view: the model's function and its inputs.
        symmetry: the claim.
        name: of the claim.
        rng: draws directions.
        layers: whether what each layer adds is measured, too.
        world: whose ranks have a share of the batch each.
    """
    own: list[LieDerivative] = []
    why = ""
    try:
        own = lie_derivative(view.function, view.inputs, symmetry, generator=rng)
    except NoTangent as reason:
        why = str(reason)
    except (ValueError, RuntimeError, TypeError, LookupError) as reason:
        why = f"the model has no derivative by its inputs: {type(reason).__name__}: {reason}"
    rates = [(one.rate, one.verdict) for one in own]
    shares = world.each("derivatives", (view.samples, rates, why))
    missing = next((why for _, _, why in shares if why), "")
    if missing:
        yield Measurement("lie_derivative", math.nan, name, status="not_applicable", note=missing)
        return
    for found in _pooled(own, [(samples, rates) for samples, rates, _ in shares]):
        target = f"{name}.{found.generator}"
        if found.note in (CUT, FLAT):
            yield Measurement(
                "lie_derivative", math.nan, target, status="not_applicable", note=found.note
            )
            continue
        yield Measurement(
            "lie_derivative", found.rate, target, verdict=found.verdict, note=found.note
        )
        ratio = found.direction_ratio
        if math.isnan(ratio):
            why = found.note or "no direction changes the output"
            yield Measurement("direction_ratio", ratio, target, status="not_applicable", note=why)
        else:
            yield Measurement("direction_ratio", ratio, target)
        if layers and found.verdict == "violated":
            yield from _shares(view, symmetry, found.generator, target)


def _shares(
    view: View, symmetry: Equivariance, generator: int, target: str
) -> Iterator[Measurement]:
    """What each layer adds to the Lie derivative along one generator; they add up to 1."""
    try:
        parts = layer_shares(view.model, view.inputs, symmetry, generator=generator)
    except (ValueError, RuntimeError, TypeError, LookupError) as reason:
        note = str(reason)
        yield Measurement("layer_share", math.nan, target, status="not_applicable", note=note)
        return
    for i, part in enumerate(parts):
        note = f"{part.kind}, rms {part.rate:.2g}" if part.kind else f"rms {part.rate:.2g}"
        yield Measurement(
            "layer_share",
            part.share,
            f"{target}/{i:02d}.{letters(view.own_name(part.layer))}",
            note=note,
        )


def _pooled(own: Sequence[LieDerivative], shares: Sequence[_Share]) -> list[LieDerivative]:
    """Rates over the samples of all ranks; the rest is that of the first rank's own."""
    if len(shares) == 1:
        return [*own]
    total = sum(n for n, _ in shares)
    pooled = []
    for k, one in enumerate(own):
        rate = math.sqrt(sum(n * rates[k][0] ** 2 for n, rates in shares) / total)
        violated = any(rates[k][1] == "violated" for _, rates in shares)
        pooled.append(replace(one, rate=rate, verdict="violated" if violated else one.verdict))
    return pooled


def letters(layer: str) -> str:
    """A layer's name as a record's may hold it."""
    return re.sub(r"[^A-Za-z0-9_.-]", "", layer.replace(" ", "-"))
