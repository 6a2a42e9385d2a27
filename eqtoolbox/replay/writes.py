"""Writes: whether an evaluation of the loss changes a live tensor without announcing it."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.operations import by_kernels
from eqtoolbox.replay.thread.listening import listening
from eqtoolbox.replay.thread.scope import current


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stops before an operation inside another one writes into a tensor of the training.

    What functions of torch write is announced to the replay before they run, copied and undone;
    here are those that write on the quiet, in C++ or below a function that says nothing of it.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replay = current()
        if replay is not None and torch.Tag.nondeterministic_seeded in func.tags:
            replay.drawn("torch")
        if func._schema.is_mutable:
            for declared, x in zip(func._schema.arguments, args, strict=False):
                if declared.alias_info is not None and declared.alias_info.is_write:
                    self._look_at(func, x)
        return func(*args, **(kwargs or {}))

    def _look_at(self, func: Any, written: Any) -> None:
        replay = current()
        for x in written if isinstance(written, (list, tuple)) else (written,):
            if replay is not None and isinstance(x, Tensor) and replay.writes(x):
                replay.refuse(
                    f"evaluating the loss writes into a tensor of the training in place ({func}), "
                    "unannounced: probes would change the training, and those that evaluate the "
                    "loss measure nothing; do it outside the loss, or make the tensor a buffer, "
                    "which probes work on a copy of"
                )


def refuse_hidden_writes(objective: Objective, params: Parameters) -> frozenset[str]:
    """Evaluate the loss once and stop it before it writes unannounced into a live tensor.

    Args:
        objective: evaluated at `params`, inside its isolation.

    Returns:
        The random streams that it draws from unannounced.

    Raises:
        LeavesTrace: it would have; nothing was changed.
    """
    replay = current()
    if replay is None:
        raise RuntimeError(
            "expected to be inside of objective.isolated(): nothing is put back here"
        )
    heard = listening(frozenset({"torch"}), replay.drawn)
    with torch.no_grad(), heard, _Watch():  # type: ignore[no-untyped-call]
        for piece in objective.pieces:
            by_kernels(piece.loss, params)
    return replay.drawn_from & {"torch"}
