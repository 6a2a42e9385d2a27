"""Running statistics: buffers that a normalisation keeps for every channel."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.window import Window


def running(buffers: Mapping[str, Tensor]) -> Parameters:
    """Those of every module that has a running mean: where its channels go, they go along.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> sorted(running(dict(model.named_buffers())))
        ['1.running_mean', '1.running_var']
    """
    means = [name for name in buffers if name.split(".")[-1] == "running_mean"]
    keepers = {name.removesuffix("running_mean"): buffers[name].shape for name in means}
    return {
        name: buffer
        for name, buffer in buffers.items()
        if keepers.get(name[: name.rfind(".") + 1]) == buffer.shape and buffer.is_floating_point()
    }


def along(objective: Objective, move: Callable[[Parameters], Parameters]) -> Objective:
    """The same objective with its running statistics moved, of every micro-batch its own."""
    moved = replace(objective, buffers={**objective.buffers, **move(running(objective.buffers))})
    if not isinstance(moved, Window):
        return moved
    parts = tuple((along(part, move), weight) for part, weight in moved.parts)
    return replace(moved, parts=parts)
