"""The continuous symmetry that a network learns, watched while its spectral gap opens."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.probes.prediction import Prediction, predicting
from eqtoolbox.record.record import Mode
from eqtoolbox.symmetry.algebra import Discovery, discover_data
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.snapshot import NotApplicable, Snapshot

_LARGEST = 8  # length of the vectors: d^2 singular values are recorded


@checked
@dataclass(frozen=True, kw_only=True)
class LearnedAlgebra(Probe):
    """The Lie algebra of linear maps that the model's output ignores; see `discover_data`.

    singular_value/<rank>: root mean square Lie derivative along each direction of gl(d), ascending.
    gap, null_gap: largest ratio of neighbours, and the same of shuffled data.
    dimension: how many lie below the gap; the note names the algebra.
    closure: largest relative part of a commutator outside the algebra.

    For inputs (batch, d) or (batch, k, d), vectors of length d <= 8.

    Args:
        points: samples of the batch at most.
        equivariant: outputs are vectors that turn with the inputs.

    Example:
        >>> LearnedAlgebra(points=64).headline
        'dimension'
    """

    name: ClassVar[str] = "discovery"
    headline: ClassVar[str] = "dimension"
    mode: ClassVar[Mode] = "eval"

    points: int = 256
    equivariant: bool = False

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ValueError(f"points must be >= 1, got {self.points}; use every(0) to switch off")

    def measure(
        self, snapshot: Snapshot, reference: Any, rng: torch.Generator
    ) -> Iterator[Measurement]:
        def body(f: Prediction) -> Discovery:
            x = f.inputs
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() not in (2, 3):
                raise NotApplicable(
                    "discovery needs vectors: inputs (batch, d) or (batch, k, d), floating point"
                )
            if x.shape[-1] > _LARGEST:
                raise NotApplicable(
                    f"discovery needs vectors of length <= {_LARGEST}, got {x.shape[-1]}"
                )
            few = x[: self.points]
            return discover_data(f.of_inputs, few, equivariant=self.equivariant, generator=rng)

        try:
            found = predicting(snapshot.objective, snapshot.before, body)
        except ValueError as reason:
            raise NotApplicable(str(reason)) from reason
        yield from _numbers(found)


def _numbers(found: Discovery) -> Iterator[Measurement]:
    if found.dimension is None:
        yield Measurement("dimension", math.nan, status="not_applicable", note=found.note)
        return
    algebra = found.name or found.note
    facts = {"algebra": algebra}
    yield Measurement("dimension", float(found.dimension), note=algebra, facts=facts)
    yield Measurement("gap", found.gap)
    yield Measurement("null_gap", found.null_gap)
    if not math.isnan(found.closure):
        yield Measurement("closure", found.closure)
    width = len(str(len(found.singular_values) - 1))
    for rank, value in enumerate(found.singular_values.tolist()):
        yield Measurement("singular_value", value, f"{rank:0{width}d}")
