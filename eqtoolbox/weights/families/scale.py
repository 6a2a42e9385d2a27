"""Scale: weights that a normalisation makes scale-invariant, times e^s."""

from dataclasses import dataclass
from typing import ClassVar

from eqtoolbox.weights.families.diagonal import DiagonalSymmetry


@dataclass(frozen=True, kw_only=True)
class Scale(DiagonalSymmetry):
    """Weights before a normalisation, per channel (BatchNorm) or as a whole (Layer, RMSNorm).

    T_s: w_i -> e^s w_i (row of the weight, and bias); Q_i = |w_i|^2 / 2, so H w_i = -g_i.
    Exact for a normalisation without epsilon; otherwise the residual is about eps / variance.

    References:
        van Laarhoven 2017 (arXiv 1706.05350); Kunin et al. 2021 (arXiv 2012.04728).
    """

    family: ClassVar[str] = "scale"
