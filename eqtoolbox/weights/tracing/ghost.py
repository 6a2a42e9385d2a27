"""Ghost: a trace that needs no parameters, only their shapes.

What depends on parameters lives on the meta device, which has no memory; everything else (tokens,
positions, masks) is real, so that a model may look at it. Where it looks at a number that depends
on parameters there is none, and only a trace with the parameters themselves can follow.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.weights.tracing.trace import Trace, Tracer, each_of, mapped, recorded


class NeedsNumbers(RuntimeError):
    """The computation looks at numbers that depend on parameters, or writes them among data."""


class Ghost(Tracer):  # type: ignore[no-untyped-call]
    """A tracer for parameters on meta.

    Args:
        device: of what is real.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._real = device

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """On meta where something read is there, else as it is."""
        if (device := kwargs.get("device")) is not None:
            kwargs = {**kwargs, "device": self._real if _is_meta(device) else device}
        tensors = [x for x in each_of((args, kwargs)) if isinstance(x, Tensor)]
        if not any(x.is_meta for x in tensors):
            return func(*args, **kwargs)
        name = func._schema.name
        in_place = name.endswith("_") and not name.endswith("__")
        if name == "aten::_local_scalar_dense" or (in_place and not tensors[0].is_meta):
            raise NeedsNumbers(f"{name.removeprefix('aten::')} of what depends on parameters")
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("meta")}
        if not all(x.is_meta for x in tensors):
            args, kwargs = mapped(_ghost, args), mapped(_ghost, kwargs)
        return func(*args, **kwargs)


def ghost_trace(
    run: Callable[[dict[str, Tensor]], tuple[Tensor | None, Tensor]],
    params: Mapping[str, Tensor],
    statistics: Mapping[str, Tensor] | None = None,
) -> Trace:
    """`trace(run, params, statistics)`, of parameters shape and type alone (they may be on meta).

    Raises:
        NeedsNumbers: see there.
        Exception: what the model's own code raises where it looks for a device or a number.

    Example:
        >>> big = torch.empty(10**6, 10**6, device="meta")
        >>> found = ghost_trace(lambda p: (None, (torch.ones(1, 10**6) @ p["w"]).sum()), {"w": big})
        >>> [node.name for node in found.nodes]
        ['ones', 'mm', 'sum']
    """
    leaves = {
        n: torch.empty(p.shape, dtype=p.dtype, device="meta").requires_grad_(
            p.is_floating_point() or p.is_complex()
        )
        for n, p in params.items()
    }
    devices = [p.device for p in params.values() if not p.is_meta]
    ghost = Ghost(devices[0] if devices else torch.device("cpu"))
    return recorded(run, leaves, ghost, statistics)


def _is_meta(device: Any) -> bool:
    return torch.device(device).type == "meta"


def _ghost(x: Any) -> Any:
    """The shape of a tensor, without its numbers."""
    if not isinstance(x, Tensor) or x.is_meta:
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
