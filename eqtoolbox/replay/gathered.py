"""Gathered: the loss of a model of which every process holds pieces, as a function of these."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.replay.everywhere import Everywhere
from eqtoolbox.replay.gathering import Gathering
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.synced import over
from eqtoolbox.replay.thread.tables import settled_parameters
from eqtoolbox.world.layout import local
from eqtoolbox.world.mesh import Mesh
from eqtoolbox.world.world import World


@dataclass(frozen=True, kw_only=True)
class Gathered(Everywhere):
    """L(p_0, ..., p_R) = (1/W) sum_r L_r(theta), theta made of the pieces p that R ranks hold.

    Each rank gives its own pieces, plain tensors, and gets its own pieces of gradients and
    products. Of theta one block is alive at a time: what FSDP2 or tensor parallelism does to the
    model's calls is left out, and nothing of theirs is touched.
    """

    gathering: Gathering
    apart: bool = False  # not averaged over ranks

    @classmethod
    def of(cls, own: Objective, world: World, even: bool = True) -> Objective:
        """The objective of all ranks, by how the world holds the model."""
        if not isinstance(world, Mesh):
            return Everywhere.of(own, world, even)
        given = {name: getattr(own, name) for name in Objective.__dataclass_fields__}
        gathering = Gathering(own.model, world)
        return cls(**given, own=own, world=world, even=even, gathering=gathering)

    @contextmanager
    def entered(self, params: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
        with over(self.world), self.gathering.shown(params, self._cast) as here:
            yield here

    @contextmanager
    def scope(self, params: Mapping[str, Tensor]) -> Iterator[None]:
        with self.entered(params) as here, super().scope(here):
            yield

    def parameters(self) -> Parameters:
        """Detached clones of the pieces of trainable parameters, cast to the objective's dtype."""
        named = settled_parameters(self.model).items()
        pieces = {n: local(p).detach().clone() for n, p in named if p.requires_grad}
        return {n: self._cast(p) for n, p in pieces.items()}

    def to(self, dtype: torch.dtype) -> Objective:
        return replace(self._with(self.own.to(dtype)), gathering=self.gathering.unmixed())

    def unmixed(self) -> Objective:
        return replace(self._with(self.own.unmixed()), gathering=self.gathering.unmixed())

    @property
    def share(self) -> Objective:
        """This process's own loss, which all evaluate together: for its value, not gradients."""
        return replace(self, apart=True)

    def averaged(self, loss: Tensor) -> Tensor:
        return loss if self.apart else super().averaged(loss)

    @property
    def calls(self) -> list[Objective]:
        return [self._with(call) for call in self.own.calls]

    def _run(
        self, params: Mapping[str, Tensor], body: Callable[[nn.Module], Any], train: bool = True
    ) -> Any:
        with self.entered(params) as here:
            return super()._run(here, body, train)
