"""Refusal: parallel training whose parameters cannot be measured, recognised before it starts."""

from collections.abc import Iterator
from typing import Any

from torch import nn


def refuse_sharded(model: nn.Module, optimizer: Any) -> None:
    """Refuse parameters that are not whole on this process, and engines that step by themselves.

    Raises:
        TypeError: names what was found, why it cannot work, and what still does.
    """
    for found, why in _findings(model, optimizer):
        raise TypeError(
            f"eqtoolbox cannot measure {found}: {why}. What still works: train with "
            "DistributedDataParallel or on one device, or gather a checkpoint into a plain model "
            "and measure it there with probe_now() or eqtoolbox.linalg"
        )


def _findings(model: nn.Module, optimizer: Any) -> Iterator[tuple[str, str]]:
    for thing in (model, optimizer, getattr(optimizer, "optimizer", None)):
        for kind in type(thing).__mro__:
            if kind.__module__.split(".")[0] == "deepspeed":
                yield (
                    f"a DeepSpeed {kind.__name__}",
                    "the engine keeps parameters, gradients and steps inside itself, so none of "
                    "them can be seen around optimizer.step()",
                )
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            yield (
                "a FullyShardedDataParallel module",
                "its parameters are pieces of flat ones between two calls",
            )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id") or hasattr(parameter, "ds_status"):
            yield (
                f"the ZeRO-partitioned parameter {name}",
                "this process holds a piece of it or nothing",
            )
        if any(kind.__name__ == "DTensor" for kind in type(parameter).__mro__):
            placements = getattr(parameter, "placements", "")
            yield (
                f"the distributed tensor {name} {placements} (FSDP2 or tensor parallel)",
                "differentiating twice through sharded parameters fails or, through some "
                "collectives, gives wrong numbers without an error",
            )
