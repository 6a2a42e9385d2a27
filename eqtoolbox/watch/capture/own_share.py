"""An own share: the gradient that this process found, before processes average theirs."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.replay.objective import Parameters


class OwnShare:
    """Sums what backwards give to each parameter, until it is released.

    Hooks on parameters see gradients before DistributedDataParallel exchanges them. Where a
    backward finds all of `.grad` cleared, what came before it counts no more.

    Args:
        named: the parameters, by name.
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self._named = dict(named)
        self._sums: Parameters = {}
        self._task = -1  # backward that was last seen
        self._handles = [
            p.register_hook(partial(self._add, name))  # type: ignore[no-untyped-call]
            for name, p in named.items()
        ]

    def gradient(self, scale: float) -> Parameters | None:
        """The sums, a gradient scaler's scale taken out; None where no backward was seen."""
        return {name: g / scale for name, g in self._sums.items()} or None

    def release(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _add(self, name: str, gradient: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task = task
            if self._sums and self._cleared():
                self._sums.clear()
        g = gradient.detach().to_dense()
        self._sums[name] = self._sums[name] + g if name in self._sums else g.clone()

    def _cleared(self) -> bool:
        grads: list[Any] = [p.grad for p in self._named.values() if p.grad is not None]
        return not any(bool(g.to_dense().count_nonzero()) for g in grads)
