"""Rescale: a unit's incoming weights times e^s and its outgoing ones times e^-s."""

from dataclasses import dataclass
from typing import ClassVar

from eqtoolbox.weights.families.diagonal import DiagonalSymmetry


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
