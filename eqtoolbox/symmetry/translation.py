"""Translation: the same vector added to every class row of the layer before a softmax."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eqtoolbox.symmetry.parameter import Parameters, ParameterSymmetry
from eqtoolbox.symmetry.recording import Recording, layer_name

SOFTMAX = {"cross_entropy", "log_softmax", "softmax"}
RESHAPES = {"view", "reshape", "flatten", "contiguous", "permute", "transpose"}


@dataclass(frozen=True, kw_only=True)
class Translation(ParameterSymmetry):
    """Head of a softmax classifier: column j of [W b] shifts as a whole, W_cj -> W_cj + s.

    K_j is the indicator of column j: constant, so it is exactly flat (H K = 0, D K = 0), and
    Q_j = sum_c W_cj.

    References:
        Kunin et al. 2021 (arXiv 2012.04728), section 3.
    """

    family: ClassVar[str] = "translation"
    columns: tuple[tuple[str, int], ...]  # parameter and its number of columns

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.columns)

    def _rows(self, tensors: Parameters) -> Iterator[tuple[str, Tensor]]:
        for name, width in self.columns:
            yield name, tensors[name].reshape(-1, width)

    def tangent(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        widths = [width for _, width in self.columns]
        parts = torch.split(coefficients, widths)
        return {
            name: part.to(rows).expand(rows.shape).reshape(params[name].shape)
            for (name, rows), part in zip(self._rows(params), parts, strict=True)
        }

    def transform(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        return {n: params[n] + k for n, k in self.tangent(params, coefficients).items()}

    def pullback(self, coefficients: Tensor, cotangent: Parameters) -> dict[str, Tensor]:
        return {name: torch.zeros_like(cotangent[name]) for name in self.names}

    def charge(self, params: Parameters) -> Tensor:
        return torch.cat([rows.sum(0, dtype=torch.float64) for _, rows in self._rows(params)])

    def pairing(self, params: Parameters, direction: Parameters) -> Tensor:
        return self.charge(direction)

    def charge_scale(self, params: Parameters) -> Tensor:
        columns = [rows.abs().sum(0, dtype=torch.float64) for _, rows in self._rows(params)]
        return torch.cat(columns)

    def finite_step(self, direction: Parameters) -> Tensor:
        some = direction[self.names[0]]
        return torch.zeros(self.dimension, dtype=torch.float64, device=some.device)


def propose_translation(
    recording: Recording, params: Mapping[str, Tensor]
) -> Iterator[Translation]:
    """One proposal per linear map whose output goes to a softmax only."""
    for operation in recording.operations:
        weights = recording.weights(operation)
        if not weights or not recording.used_once(weights):
            continue
        value = operation.output
        while (after := recording.only_use(value)) is not None and after.name in RESHAPES:
            value = after.output
        if after is not None and after.name in SOFTMAX:
            columns = tuple((n, params[n][0].numel()) for n in weights)
            dimension = sum(width for _, width in columns)
            yield Translation(name=layer_name(weights[0]), dimension=dimension, columns=columns)
