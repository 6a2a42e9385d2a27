"""Input rotation: turning the inputs is turning the first layer's weights back."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eqtoolbox.weights.families.head import HeadRotation


@dataclass(frozen=True, kw_only=True)
class InputRotation(HeadRotation):
    """W -> W S^T for all first layers W, x -> S x, S = e^B, B antisymmetric: f is unchanged.

    Joint: L(T_s theta, S_s x) = L(theta, x) and g . K + <dL/dx, B x> = 0. Where the data are
    symmetric under S, T is a symmetry of the expected loss. Nothing is conserved.

    References:
        Yang & Ziyin 2025 (arXiv 2512.21447).
    """

    family: ClassVar[str] = "input_rotation"
    joint: ClassVar[bool] = True
    axis: int  # of the inputs: 1 for channels, -1 for features (flattened, if need be)

    def rho(self, outputs: Tensor, coefficients: Tensor) -> Tensor:
        return torch.zeros_like(outputs)

    def transform_outputs(self, outputs: Tensor, coefficients: Tensor) -> Tensor:
        return outputs

    def transform_inputs(self, inputs: Tensor, coefficients: Tensor) -> Tensor:
        """S_c x."""
        return self._turned(inputs, torch.matrix_exp(self.matrices(coefficients)[0]))

    def tangent_inputs(self, inputs: Tensor, coefficients: Tensor) -> Tensor:
        """B_c x = d/ds S_s x at s = 0."""
        return self._turned(inputs, self.matrices(coefficients)[0])

    def _turned(self, inputs: Tensor, matrix: Tensor) -> Tensor:
        if self.axis == 1:
            return torch.einsum("ij,nj...->ni...", matrix.to(inputs), inputs)
        return (inputs.reshape(-1, self.size) @ matrix.mT.to(inputs)).reshape(inputs.shape)
