"""Rescale: a unit's incoming weights times e^s and its outgoing ones times e^-s."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from eqtoolbox.symmetry.diagonal import DiagonalSymmetry, Leg, leg
from eqtoolbox.symmetry.recording import LINEAR, Operation, Recording, layer_name

# maps h with h(a x) = a h(x) for a > 0, unit by unit
HOMOGENEOUS = {
    "relu", "relu_", "leaky_relu", "leaky_relu_", "dropout", "dropout_", "dropout2d", "clone",
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d",
    "contiguous",
}  # fmt: skip
RESHAPES = {"flatten", "reshape", "view", "squeeze", "mean"}


@dataclass(frozen=True, kw_only=True)
class Rescale(DiagonalSymmetry):
    """Between two linear maps with a positively homogeneous one between them, per unit i.

    T_s: in_i -> e^s in_i (row of the weight, and bias), out_i -> e^-s out_i (column);
    Q_i = (|in_i|^2 + b_i^2 - |out_i|^2) / 2. After a flatten, unit i owns a block of columns.

    References:
        Du, Hu & Lee 2018 (arXiv 1806.00900); Kunin et al. 2021 (arXiv 2012.04728).
    """

    family: ClassVar[str] = "rescale"


def propose_rescale(recording: Recording, params: Mapping[str, Tensor]) -> Iterator[Rescale]:
    """One proposal per pair linear map -> homogeneous maps -> linear map."""
    for first in recording.operations:
        incoming = recording.weights(first)
        second = _next_linear(first, recording) if incoming else None
        if second is None:
            continue
        outgoing = recording.weights(second)[0]
        if outgoing in incoming or not recording.used_once((*incoming, outgoing)):
            continue
        if second.name != "linear" and second.argument(6, "groups", 1) != 1:
            continue
        units = params[incoming[0]].shape[0]
        legs = (
            *(leg(name, params, 0, units, 1.0) for name in incoming),
            leg(outgoing, params, 1, units, -1.0),
        )
        if all(isinstance(part, Leg) for part in legs):
            name = f"{layer_name(incoming[0])}-{layer_name(outgoing)}"
            whole = tuple(part for part in legs if part is not None)
            yield Rescale(name=name, dimension=units, legs=whole)


def _next_linear(first: Operation, recording: Recording) -> Operation | None:
    """The linear map that reads the first one's output through homogeneous maps only."""
    value = first.output
    while (step := recording.only_use(value)) is not None:
        if step.name in LINEAR:
            reads_it = bool(step.inputs) and step.inputs[0] == value
            return step if reads_it and recording.weights(step) else None
        if step.name not in HOMOGENEOUS | RESHAPES:
            return None
        value = step.output
    return None
