"""Everywhere: the loss that several processes train together, as a pure function on each."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from eqtoolbox.replay.objective import Objective
from eqtoolbox.replay.synced import over
from eqtoolbox.replay.window import Window
from eqtoolbox.world.adjoints import copied, mean, summed
from eqtoolbox.world.world import World


@dataclass(frozen=True, kw_only=True)
class Everywhere(Objective):
    """L(theta) = (1/W) sum_r L_r(theta), L_r the loss of rank r on its own share of the batch.

    Shares have the weight that training gives them, 1/W each, however long they are. Values,
    gradients and all further derivatives are those of L on every rank, equal to the bit; ranks
    evaluate it together or not at all. Outputs of the model are those on this rank's own share.
    """

    own: Objective  # L_r
    world: World
    even: bool = True  # whether all ranks have as many pieces

    @classmethod
    def of(cls, own: Objective, world: World, even: bool = True) -> Objective:
        """The objective of all ranks; of a single process its own."""
        if not world.several:
            return own
        given = {name: getattr(own, name) for name in Objective.__dataclass_fields__}
        return cls(**given, own=own, world=world, even=even)

    def to(self, dtype: torch.dtype) -> Objective:
        return self._with(self.own.to(dtype))

    def unmixed(self) -> Objective:
        return self._with(self.own.unmixed())

    def halved(self) -> Objective:
        return self._with(self.own.halved())

    def split(self, parts: int) -> list[tuple[Objective, float]]:
        """Pieces of every rank's share together, of equal weight: their mean is the whole."""
        pieces = self.own.split(parts)
        total = sum(n for _, n in pieces) / len(pieces)
        weighted = (Window.of(((piece, n / total),)) for piece, n in pieces)
        return [(self._with(piece), 1.0) for piece in weighted]

    @property
    def single(self) -> Objective:
        return self._with(self.own.single)

    @property
    def share(self) -> Objective:
        return self.own

    @property
    def terms(self) -> list[tuple[Objective, float]]:
        if not self.even:
            raise ValueError("expected as many micro-batches on all ranks, got different numbers")
        return [(self._with(part), weight) for part, weight in self.own.terms]

    @property
    def pieces(self) -> list[Objective]:
        return [self._with(piece) for piece in self.own.pieces] if self.even else [self]

    @property
    def calls(self) -> list[Objective]:
        return self.own.calls

    @contextmanager
    def entered(self, params: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """Scope of this rank's own evaluation; gives the parameters as that is to find them."""
        with over(self.world):
            yield copied(self.world, params)

    def outputs(self, params: Mapping[str, Tensor]) -> Tensor:
        with self.entered(params) as here:
            return self.own.outputs(here)

    def output_and_loss(self, params: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor]:
        with self.entered(params) as here:
            output, loss = self.own.output_and_loss(here)
            return output, self.averaged(loss)

    def averaged(self, loss: Tensor) -> Tensor:
        """The mean of what every rank found on its share."""
        return mean(self.world, loss)

    def total(self, part: Tensor) -> Tensor:
        return summed(self.world, part)

    def loss_of_output(
        self, params: Mapping[str, Tensor], output: Any, train: bool = False
    ) -> Tensor:
        with self.entered(params) as here:
            return self.averaged(self.own.loss_of_output(here, output, train))

    def isolated(self, thorough: bool = False, draws: bool = False) -> Any:
        return self.own.isolated(thorough, draws)

    def _scalar(self, params: Mapping[str, Tensor], train: bool) -> Tensor:
        with self.entered(params) as here:
            return self.averaged(self.own._scalar(here, train))

    def _with(self, own: Objective) -> Self:
        given = {name: getattr(own, name) for name in Objective.__dataclass_fields__}
        return replace(self, **given, own=own)
