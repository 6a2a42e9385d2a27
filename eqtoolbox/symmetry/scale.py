"""Scale: the weights that feed a batch normalisation, times e^s channel by channel."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from eqtoolbox.symmetry.diagonal import DiagonalSymmetry, leg
from eqtoolbox.symmetry.recording import Recording, layer_name


@dataclass(frozen=True, kw_only=True)
class Scale(DiagonalSymmetry):
    """Weights before a normalisation by batch statistics, per channel i.

    T_s: w_i -> e^s w_i (row of the weight, and bias); Q_i = |w_i|^2 / 2, so H w_i = -g_i.
    Exact for a normalisation without epsilon; otherwise the residual is about eps / variance.

    References:
        van Laarhoven 2017 (arXiv 1706.05350); Kunin et al. 2021 (arXiv 2012.04728).
    """

    family: ClassVar[str] = "scale"
    tolerance: ClassVar[float] = 3e-2


def propose_scale(recording: Recording, params: Mapping[str, Tensor]) -> Iterator[Scale]:
    """One proposal per linear map that only a batch normalisation in training mode reads."""
    for operation in recording.operations:
        weights = recording.weights(operation)
        after = recording.only_use(operation.output) if weights else None
        if after is None or after.name != "batch_norm":
            continue
        if after.argument(5, "training", False) and recording.used_once(weights):
            units = params[weights[0]].shape[0]
            legs = tuple(part for n in weights if (part := leg(n, params, 0, units, 1.0)))
            yield Scale(name=layer_name(weights[0]), dimension=units, legs=legs)
