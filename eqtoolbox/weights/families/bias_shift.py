"""Bias shift: a bias that only linear maps read, moved into the biases after these maps."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eqtoolbox.weights.families.maps import Reader
from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters


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
    source: str
    offset: int  # first entry of the source that moves; `dimension` of them do
    readers: tuple[Reader, ...]

    @property
    def names(self) -> tuple[str, ...]:
        maps = [m.name for r in self.readers for m in r.maps]
        return tuple(dict.fromkeys([self.source, *(r.bias for r in self.readers), *maps]))

    @property
    def charges(self) -> int:
        return 0

    @property
    def direct(self) -> bool:
        """Whether a single matrix lies before the bias of every reader."""
        return all(
            len(r.maps) == 1 and r.maps[0].kind != "diagonal" and r.factor == 1
            for r in self.readers
        )

    def tangent(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        total = {n: torch.zeros_like(params[n]) for n in self.names}
        whole = torch.zeros_like(params[self.source])
        end = self.offset + self.dimension
        whole[self.offset : end] = coefficients.to(whole)
        total[self.source] = total[self.source] + whole
        for r in self.readers:
            total[r.bias] = total[r.bias] - r.along(params, coefficients)[-1].to(total[r.bias])
        return total

    def transform(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        return {n: params[n] + k for n, k in self.tangent(params, coefficients).items()}

    def pullback(
        self, params: Parameters, coefficients: Tensor, cotangent: Parameters
    ) -> dict[str, Tensor]:
        total = {n: torch.zeros_like(cotangent[n]) for n in self.names}
        for r in self.readers:
            vectors = r.along(params, coefficients.to(cotangent[r.bias]))
            pulled = r.back(params, cotangent[r.bias])
            for m, before, after in zip(r.maps, vectors, pulled[1:], strict=False):
                total[m.name] = total[m.name] - m.by_weight(before, after)
        return total

    def slopes(self, params: Parameters, cotangent: Parameters) -> Tensor:
        end = self.offset + self.dimension
        pulled = sum(r.pulled(params, cotangent[r.bias]) for r in self.readers)
        return (cotangent[self.source][self.offset : end] - pulled).double()

    def lengths(self, params: Parameters) -> Tensor:
        totals: dict[str, Tensor] = {}
        for r in self.readers:
            totals[r.bias] = totals.get(r.bias, 0) + r.matrix(params).double()
        return torch.stack([t.square().sum(0) for t in totals.values()]).sum(0).add(1).sqrt()

    def pairing(self, params: Parameters, direction: Parameters) -> Tensor:
        return params[self.source].new_zeros(0, dtype=torch.float64)

    def charge(self, params: Parameters) -> Tensor:
        return self.pairing(params, params)

    def charge_scale(self, params: Parameters) -> Tensor:
        return self.pairing(params, params)

    def finite_step(self, direction: Parameters) -> Tensor:
        return self.pairing(direction, direction)
