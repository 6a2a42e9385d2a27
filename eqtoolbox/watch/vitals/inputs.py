"""Inputs: the scales of the columns that the first layer is given."""

from dataclasses import dataclass

from torch import Tensor

ROWS = 8  # from which the spread of a column says anything


@dataclass(frozen=True)
class Inputs:
    """What the first product of a model is given, by column (channels of images)."""

    rms: float  # of all entries
    ratio: float  # largest over smallest spread of the columns that vary
    columns: int
    constant: int  # columns that do not vary
    offset: float  # median of |mean| over spread

    @classmethod
    def of(cls, x: Tensor, axis: int = -1) -> "Inputs | None":
        """Of a batch (..., columns); None of too few rows.

        Example:
            >>> import torch
            >>> x = torch.randn(100, 2) * torch.tensor([1.0, 1e4])
            >>> Inputs.of(x).ratio > 5e3
            True
        """
        rows = x.detach().double().movedim(axis, -1).flatten(0, -2)
        if len(rows) < ROWS or not rows.numel():
            return None
        mean, spread = rows.mean(0), rows.std(0)
        varies = spread > 1e-6 * rows.abs().amax(0)
        count = int(varies.sum())
        some = spread[varies]
        return cls(
            rms=float(rows.square().mean().sqrt()),
            ratio=float(some.max() / some.min()) if count else 1.0,
            columns=rows.shape[1],
            constant=rows.shape[1] - count,
            offset=float((mean.abs()[varies] / some).median()) if count else 0.0,
        )
