"""Starts: what an evaluation of the loss begins from, copied before the loop changes it."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from eqtoolbox.replay.belongings import Belongings
from eqtoolbox.replay.gradients import required
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.replay.tree import map_tensors, tensors


@dataclass(frozen=True)
class Start:
    """What one evaluation of the loss began from."""

    random: RandomState
    buffers: Parameters
    belongings: Belongings | None


def fresh(batch: Any) -> Any:
    """Copies of the tensors in new containers: loops change batches in place.

    They require gradients where the loop's own do, for losses that differentiate by them.
    """
    return map_tensors(lambda x: required(x.detach().clone(), x), batch)


def versions_of(batch: Any) -> list[int]:
    """How often each tensor of a batch has been written."""
    return [t._version for t in tensors(batch) if not t.is_inference()]


def buffers_of(model: nn.Module) -> Parameters:
    """Copies of a model's buffers."""
    return {name: b.detach().clone() for name, b in model.named_buffers()}
