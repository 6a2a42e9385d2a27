"""Synchronised batch normalisation, as a function that talks over no group of the training's.

Of the loss of all ranks its statistics are those of the whole batch, by exchanges that know their
derivatives; of what one rank evaluates alone they are those of its own share.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from eqtoolbox.replay.thread.interception import Intercepted
from eqtoolbox.world.adjoints import pooled
from eqtoolbox.world.world import World

_FORWARD = Intercepted(("torch.nn.modules.batchnorm", "SyncBatchNorm"), "forward")


class _Here(threading.local):
    world: World | None = None


_here = _Here()


@contextmanager
def over(world: World) -> Iterator[None]:
    """Scope of an evaluation that all ranks take part in."""
    outer, _here.world = _here.world, world
    try:
        yield
    finally:
        _here.world = outer


def synced() -> AbstractContextManager[Any]:
    """Scope in which this thread's calls of `SyncBatchNorm` are answered so."""
    return _FORWARD.answered_by(_normalised)


def _normalised(_: Any, module: Any, x: Tensor) -> Tensor:
    counts = module.training or module.running_mean is None
    if _here.world is None or not counts:
        local: Tensor = _BatchNorm.forward(module, x)
        return local
    dims = [d for d in range(x.dim()) if d != 1]
    count = x.new_full((1,), x.numel() / x.shape[1])
    total = pooled(_here.world, torch.cat([x.sum(dims), count]))
    mean = (total[:-1] / total[-1]).view([-1 if d == 1 else 1 for d in range(x.dim())])
    centred = x - mean
    variance = pooled(_here.world, centred.square().sum(dims)) / total[-1]
    normal: Tensor = centred * (variance.view_as(mean) + module.eps).rsqrt()
    if module.weight is not None:
        normal = normal * module.weight.view_as(mean) + module.bias.view_as(mean)
    return normal
