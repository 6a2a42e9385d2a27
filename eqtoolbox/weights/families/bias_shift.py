"""Bias shift: a bias that only linear maps read, moved into the biases after these maps."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from eqtoolbox.weights.forms.maps import Reader
from eqtoolbox.weights.forms.through import Through
from eqtoolbox.weights.parameter import ContinuousSymmetry


@dataclass(frozen=True, kw_only=True)
class BiasShift(ContinuousSymmetry):
    """b -> b + u, b_o -> b_o - M u for every reader, M the product of the maps before it; no Q.

    Value bias against output bias (rows of attention sum to one), bias of a normalisation against
    the biases of what reads it, biases of a deep linear network, through layer scales too. K
    depends on the weights in M.

    References:
        Yang & Ziyin 2025 (arXiv 2512.21447).
    """

    family: ClassVar[str] = "bias_shift"
    separable: ClassVar[bool] = False  # M takes the weights
    source: str
    offset: int  # first entry of the source that moves; `dimension` of them do
    readers: tuple[Reader, ...]

    @cached_property
    def form(self) -> Through:
        return Through(
            source=self.source, offset=self.offset, readers=self.readers, dimension=self.dimension
        )
