"""Input rotation: turning the inputs is turning the first layer's weights back."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from eqtoolbox.weights.families.general_linear import MatrixSymmetry
from eqtoolbox.weights.forms.algebra import ROTATIONS, Algebra
from eqtoolbox.weights.forms.gram import Gram, MatrixLeg
from eqtoolbox.weights.parameter import MOVED


@dataclass(frozen=True, kw_only=True)
class InputRotation(MatrixSymmetry):
    """W -> W S^T for all first layers W, x -> S x, S = e^B, B antisymmetric: f is unchanged.

    Joint: L(T_s theta, S_s x) = L(theta, x) and g . K + <dL/dx, B x> = 0. Where the data are
    symmetric under S, T is a symmetry of the expected loss. Nothing is conserved.

    References:
        Yang & Ziyin 2025 (arXiv 2512.21447).
    """

    family: ClassVar[str] = "input_rotation"
    algebra: ClassVar[Algebra] = ROTATIONS
    axis: int  # of the inputs: 1 for channels, -1 for features (flattened, if need be)

    @cached_property
    def input(self) -> Gram:
        every = torch.arange(self.size)[None, None]
        return Gram.of((MatrixLeg(MOVED, 1, every, 1),), self.dimension, ROTATIONS)

    def transform_inputs(self, inputs: Tensor, coefficients: Tensor) -> Tensor:
        return super().transform_inputs(self._rows(inputs), coefficients).reshape(inputs.shape)

    def tangent_inputs(self, inputs: Tensor, coefficients: Tensor) -> Tensor:
        return super().tangent_inputs(self._rows(inputs), coefficients).reshape(inputs.shape)

    def _rows(self, inputs: Tensor) -> Tensor:
        return inputs if self.axis == 1 else inputs.reshape(-1, self.size)
