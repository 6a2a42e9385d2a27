"""A readout: the numbers of one walk through tensors, on their way to the host."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Readout:
    """What one walk through all stacks finds; on the host, in float64, when it is asked for."""

    read: Callable[[], Tensor]  # everything, flat
    shapes: list[tuple[int, ...]]  # of the moments of every kind
    squared: int  # how many points were asked for their |point|
    more: int  # numbers that were to come along

    @cached_property
    def _parts(self) -> list[Tensor]:
        sizes = [*map(math.prod, self.shapes), self.squared, self.more]
        return [*torch.split(self.read(), sizes)]

    @cached_property
    def moments(self) -> list[Tensor]:
        """Of every kind."""
        return [m.view(shape) for m, shape in zip(self._parts, self.shapes, strict=False)]

    @property
    def sizes(self) -> list[float]:
        """|point| of those that were asked for."""
        found: list[float] = self._parts[-2].sqrt().tolist()
        return found

    @property
    def beside(self) -> Tensor:
        """Numbers that came along."""
        return self._parts[-1]
