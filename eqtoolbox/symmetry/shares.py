"""Shares: the violation of each tensor of a structured output, summed up over an orbit."""

import torch
from torch import Tensor

from eqtoolbox.symmetry.orbit import square
from eqtoolbox.symmetry.structure import Layout


class Parts:
    """Running sums of the violation of each output tensor."""

    def __init__(self, layout: Layout | None) -> None:
        self.layout = layout
        count = 0 if layout is None else len(layout.names)
        self.sums = torch.zeros(2, count, dtype=torch.float64)

    def add(self, defect: Tensor, right: Tensor) -> None:
        if self.layout is not None:
            for row, packed in enumerate((defect, right)):
                parts = [square(x.contiguous()) for x in self.layout.columns(packed)]
                self.sums[row] += torch.stack(parts).cpu()

    def errors(self) -> dict[str, float]:
        if self.layout is None:
            return {}
        return dict(
            zip(self.layout.names, (self.sums[0] / self.sums[1]).sqrt().tolist(), strict=True)
        )
