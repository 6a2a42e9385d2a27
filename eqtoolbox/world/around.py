"""Which world a model trains in, as what stands around it tells."""

import gc
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import nn

from eqtoolbox.world.control import Control, NotAttached
from eqtoolbox.world.mesh import Mesh
from eqtoolbox.world.placement import placement_of
from eqtoolbox.world.ranks import Ranks, data_backend
from eqtoolbox.world.world import World

logger = logging.getLogger("eqtoolbox")
UNWRAPPED = (
    "%d processes train, but no DistributedDataParallel holds this model: the first one measures "
    "its own share of the batch; to measure the whole attach after DistributedDataParallel(model) "
    "or accelerator.prepare(model)"
)
ALONE = (
    "the first rank measures its own share of the batch, and others nothing; attach on every rank "
    "(only the first writes) to measure the whole"
)


def world_of(
    model: nn.Module, called: nn.Module, about: Mapping[str, Any], patience: float
) -> World:
    """The ranks that train a model together; the world of one process where it trains alone.

    Args:
        model: out of its wrappers.
        called: as the loop calls it.
        about: what must be the same on all ranks.
        patience: seconds after which a rank that does not answer is given up.

    Raises:
        TypeError: parameters are placed in a way that cannot be evaluated again.
        NotAttached: not all of those that hold shards attach. Where each holds all the first one
            measures its own share, and a warning says so.
        ValueError: they attach with different arguments.
    """
    device = next(model.parameters()).device
    placement = placement_of(model)
    if placement is not None:
        control = Control(placement.axes.every, patience, about)
        return Mesh(control, placement, data_backend(device))
    ranks = data_parallel(model, called)
    if len(ranks) < 2:
        if _together():
            logger.warning(UNWRAPPED, dist.get_world_size())
        return World()
    try:
        return Ranks(Control(ranks, patience, about), data_backend(device))
    except NotAttached as reason:
        warnings.warn(f"eqtoolbox: {reason}: {ALONE}", RuntimeWarning, stacklevel=2)
        return World()


def data_parallel(model: nn.Module, called: nn.Module) -> list[int]:
    """Ranks over which DistributedDataParallel averages the gradients of a model; none without."""
    if not _together():
        return []
    around = _wrapper(called) or _holder(model)
    group = _coming(model) if around is None else around.process_group
    return [] if group is None else dist.get_process_group_ranks(group)


def _together() -> bool:
    """Whether there are other processes at all."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _wrapper(called: Any) -> Any:
    """The DistributedDataParallel among the wrappers of what the loop calls."""
    while called is not None:
        if isinstance(called, nn.parallel.DistributedDataParallel):
            return called
        inner = vars(called).get("_modules", {})
        called = inner.get("_orig_mod") or inner.get("module")
    return None


def _coming(model: nn.Module) -> Any:
    """The group over which `replicate` will average, whose wrapper is made by the first call."""
    hooks = model._forward_pre_hooks.values()
    owners: list[Any] = [getattr(hook, "__self__", None) for hook in hooks]
    for state in owners:
        if type(state).__name__ == "_ReplicateState":
            given = state._init_kwargs
            mesh = given.get("device_mesh")
            return given.get("process_group") or (mesh.get_group() if mesh else dist.group.WORLD)
    return None


def _holder(model: nn.Module) -> Any:
    """A DistributedDataParallel that averages the gradients of all that a model trains."""
    kind = nn.parallel.DistributedDataParallel
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    found = (o for o in gc.get_objects() if issubclass(type(o), kind))
    return next((o for o in found if trained <= {id(p) for p in o.parameters()}), None)
