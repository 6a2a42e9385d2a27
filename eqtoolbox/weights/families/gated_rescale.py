"""Gated rescale: up-projection row against down-projection column of a gated unit."""

from dataclasses import dataclass
from typing import ClassVar

from eqtoolbox.weights.families.rescale import Rescale


@dataclass(frozen=True, kw_only=True)
class GatedRescale(Rescale):
    """h_i = act(gate_i x) * up_i x: T_s: up_i -> e^s up_i, down_i -> e^-s down_i, gate unmoved.

    Q_i = (|up_i|^2 - |down_i|^2) / 2; SwiGLU, GEGLU, and any product of two activations.

    References:
        Shazeer 2020 (arXiv 2002.05202) for the layer; the law as for rescale.
    """

    family: ClassVar[str] = "gated_rescale"
