"""Writes: whether an evaluation of the loss would change a live tensor in place."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from eqtoolbox.objective import Objective, Parameters


class LiveWrite(RuntimeError):
    """The loss was about to change a tensor of the training; nothing was changed."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stops before an operation that writes into one of these storages, `.data` included."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            for declared, x in zip(func._schema.arguments, args, strict=False):
                if declared.alias_info is not None and declared.alias_info.is_write:
                    self._look_at(func, x)
        return func(*args, **(kwargs or {}))

    def _look_at(self, func: Any, written: Any) -> None:
        for x in written if isinstance(written, (list, tuple)) else (written,):
            name = self._names.get(_address(x)) if isinstance(x, Tensor) else None
            if name is not None:
                raise LiveWrite(
                    f"evaluating the loss writes into {name} in place ({func}): probes would "
                    "change the training, and measure nothing; do it outside the loss, or make "
                    "the tensor a buffer, which probes work on a copy of"
                )


def refuse_live_writes(
    objective: Objective, params: Parameters, others: Iterable[nn.Module] = ()
) -> None:
    """Evaluate the loss once and stop it before it writes into a live parameter.

    Args:
        objective: evaluated at `params`, inside its isolation.
        others: further modules whose parameters are live.

    Raises:
        LiveWrite: it would have; nothing was changed.
    """
    names = {
        _address(p): name
        for module in (*others, objective.model)
        for name, p in module.named_parameters()
        if p.numel()
    }
    with torch.no_grad(), _Watch(names):
        for piece in objective.pieces:
            piece.loss(params)


def _address(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # no storage, as of sparse tensors
        return -1
