"""A whole: what an objective is made of, where it is one call of one loss by one process."""

from typing import Any

from torch import Tensor


class Whole:
    """One call of a loss function; sums and means of several say otherwise."""

    @property
    def single(self) -> Any:
        """One call of the loss function: the last, where several were summed."""
        return self

    @property
    def share(self) -> Any:
        """What this process evaluates of it by itself."""
        return self

    @property
    def terms(self) -> list[tuple[Any, float]]:
        """The losses whose weighted sum it is."""
        return [(self, 1.0)]

    def total(self, part: Tensor) -> Tensor:
        """What processes found on their shares of the batch, added up; differentiable."""
        return part

    @property
    def pieces(self) -> list[Any]:
        """Objectives whose sum this is, each with a graph of its own."""
        return [self]

    @property
    def calls(self) -> list[Any]:
        """The single calls of the loss function that are summed, each with a batch of its own."""
        return [self]
