"""Diagonal symmetries: every unit scales its own slices of some parameters."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from eqtoolbox.weights.forms.diagonal import Diagonal, Leg
from eqtoolbox.weights.parameter import ContinuousSymmetry


@dataclass(frozen=True, kw_only=True)
class DiagonalSymmetry(ContinuousSymmetry):
    """T_s theta = e^(s A_i) theta for units i, A_i diagonal."""

    legs: tuple[Leg, ...]

    @cached_property
    def form(self) -> Diagonal:
        return Diagonal.of(self.legs, self.dimension)


@dataclass(frozen=True, kw_only=True)
class Rescale(DiagonalSymmetry):
    """Between linear maps with positively homogeneous ones between them, per unit i.

    T_s: in_i -> e^s in_i (row of the weight, and bias), out_i -> e^-s out_i (column);
    Q_i = (|in_i|^2 + b_i^2 - |out_i|^2) / 2. After a flatten, unit i owns a block of columns; a
    residual stream ties what is written to it.

    References:
        Du, Hu & Lee 2018 (arXiv 1806.00900); Kunin et al. 2021 (arXiv 2012.04728).
    """

    family: ClassVar[str] = "rescale"


@dataclass(frozen=True, kw_only=True)
class GatedRescale(Rescale):
    """h_i = act(gate_i x) * up_i x: T_s: up_i -> e^s up_i, down_i -> e^-s down_i, gate unmoved.

    Q_i = (|up_i|^2 - |down_i|^2) / 2; SwiGLU, GEGLU, and any product of two activations.

    References:
        Shazeer 2020 (arXiv 2002.05202) for the layer; the law as for rescale.
    """

    family: ClassVar[str] = "gated_rescale"


@dataclass(frozen=True, kw_only=True)
class GainRescale(Rescale):
    """T_s: gamma_i, beta_i -> e^s gamma_i, e^s beta_i; column i of every consumer -> e^-s.

    Q_i = (gamma_i^2 + beta_i^2 - sum of |column_i|^2) / 2. All consumers must be linear in the
    channel, up to positively homogeneous maps.

    References:
        Yang & Ziyin 2025 (arXiv 2512.21447).
    """

    family: ClassVar[str] = "gain_rescale"


@dataclass(frozen=True, kw_only=True)
class Scale(DiagonalSymmetry):
    """Weights before a normalisation, per channel (BatchNorm) or as a whole (Layer, RMSNorm).

    T_s: w_i -> e^s w_i (row of the weight, and bias); Q_i = |w_i|^2 / 2, so H w_i = -g_i.
    Exact for a normalisation without epsilon; otherwise the residual is about eps / variance.

    References:
        van Laarhoven 2017 (arXiv 1706.05350); Kunin et al. 2021 (arXiv 2012.04728).
    """

    family: ClassVar[str] = "scale"
