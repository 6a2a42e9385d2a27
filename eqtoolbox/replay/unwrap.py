"""Unwrapping: what stands around a model or an optimizer, taken off or refused by name."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

_INNER = {  # wrappers that call the model they hold, and where they hold it
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
_INSTEAD = (
    "what works: DistributedDataParallel and fully_shard (FSDP2), attached on every rank, or "
    "`eqtoolbox audit` on a whole copy of the model"
)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel and torch.compile."""
    while type(model).__name__ in _INNER:
        model = getattr(model, _INNER[type(model).__name__])
    return model


def refuse_sharded(model: nn.Module) -> None:
    """Refuse parameters of which this process holds a part only.

    Raises:
        TypeError: names what was found and what works instead.
    """
    for module in model.modules():
        kind = type(module).__name__
        if kind in ("FullyShardedDataParallel", "DeepSpeedEngine", "PipelineEngine"):
            raise TypeError(
                f"{kind} shards the parameters: probes cannot evaluate them; {_INSTEAD}"
            )
    for name, p in model.named_parameters():
        if hasattr(p, "ds_id") or hasattr(p, "ds_status"):
            raise TypeError(f"{name} is partitioned by DeepSpeed ZeRO; {_INSTEAD}")


def refuse_scripted(what: str, given: Any) -> None:
    """Refuse what torch.jit.script made: it takes no hooks, and its parameters are its own.

    Args:
        what: the argument's name.
        given: a module, or None.

    Raises:
        TypeError: with what works instead.
    """
    plain = nn.Module.register_forward_pre_hook
    if given is not None and type(given).register_forward_pre_hook is not plain:
        raise TypeError(
            f"{what} expected a module that takes hooks, got a {type(given).__name__} of "
            f"torch.jit.script: give the module that it was made of, which holds the same "
            "parameters, and call that in the loop; torch.compile works as it is"
        )


def refuse_engine(given: Any) -> None:
    """Refuse an engine of DeepSpeed given as the model, or an optimizer that it wrapped.

    Raises:
        TypeError: names what was found and what works instead.
    """
    for kind in type(given).__mro__:
        if kind.__module__.partition(".")[0] == "deepspeed":
            raise TypeError(f"{kind.__name__} of DeepSpeed is not supported; {_INSTEAD}")


def optimizers_in(given: Any) -> list[torch.optim.Optimizer]:
    """The optimizer itself, or the one inside a wrapper; all of them, where several are given.

    Raises:
        TypeError: there is none with working step hooks.
    """
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, Iterable) and not isinstance(given, (str, nn.Module)):
        found = [_with_hooks(one) for one in given]
        if not found:
            raise TypeError("expected a torch.optim.Optimizer or several, got none")
        return list(dict.fromkeys(found))
    return [_with_hooks(given)]


def _with_hooks(optimizer: Any) -> torch.optim.Optimizer:
    seen = optimizer
    while seen is not None:
        refuse_engine(seen)
        if isinstance(seen, torch.optim.Optimizer) and hasattr(seen, "_optimizer_step_post_hooks"):
            return seen
        seen = getattr(seen, "optimizer", None)
    raise TypeError(
        f"expected a torch.optim.Optimizer with step hooks, or a wrapper that holds one as "
        f".optimizer, got {type(optimizer).__name__}; pass the inner torch optimizer"
    )


def other_process() -> bool:
    """Whether this is one of several processes of a run, and not the first."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return bool(distributed.get_rank() != 0)


def processes() -> int:
    """How many processes train together."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return int(distributed.get_world_size())
