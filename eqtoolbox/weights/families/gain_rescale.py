"""Gain rescale: a normalisation's gain and bias against what reads that channel."""

from dataclasses import dataclass
from typing import ClassVar

from eqtoolbox.weights.families.rescale import Rescale


@dataclass(frozen=True, kw_only=True)
class GainRescale(Rescale):
    """T_s: gamma_i, beta_i -> e^s gamma_i, e^s beta_i; column i of every consumer -> e^-s.

    Q_i = (gamma_i^2 + beta_i^2 - sum of |column_i|^2) / 2. All consumers must be linear in the
    channel, up to positively homogeneous maps.

    References:
        Yang & Ziyin 2025 (arXiv 2512.21447).
    """

    family: ClassVar[str] = "gain_rescale"
