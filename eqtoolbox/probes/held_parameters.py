"""Held: a loss as a function of some of its parameters, for want of memory for all of them."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.replay.objective import Objective, Parameters

# copies that a comparison in float64 takes: of what is moved, and of all
SEVERAL, BESIDE = 16.0, 4.0


@dataclass(frozen=True)
class HeldObjective:
    """The loss of the parameters that it is given and of those that stay.

    Example:
        >>> params = {"w": torch.ones(9, 9), "b": torch.ones(9)}
        >>> HeldObjective.fitting(params, 2**10), HeldObjective.fitting(params, 2**20)
        (['b'], ['w', 'b'])
    """

    objective: Objective
    rest: Parameters

    @staticmethod
    def fitting(params: Parameters, room: float) -> list[str]:
        """The names of all parameters, or of the smallest, as many as take half of what is left.

        As a rule these are some of every layer, and no more are needed.

        Args:
            params: all of them.
            room: bytes that are left.
        """
        total = sum(p.nbytes for p in params.values())
        left = room - BESIDE * total
        if SEVERAL * total <= left:
            return list(params)
        left /= 2
        names = set[str]()
        for name, p in sorted(params.items(), key=lambda item: item[1].numel()):
            left -= SEVERAL * p.nbytes
            if names and left < 0:
                break
            names.add(name)
        return [name for name in params if name in names]

    def __call__(self, params: Parameters) -> Tensor:
        return self.objective({**self.rest, **params})

    def scope(self, params: Parameters) -> AbstractContextManager[None]:
        """That of the loss."""
        return self.objective.scope({**self.rest, **params})

    def to(self, dtype: torch.dtype) -> "HeldObjective":
        """The same in another precision."""
        wide = {n: p.to(dtype) for n, p in self.rest.items()}
        return HeldObjective(self.objective.to(dtype), wide)
