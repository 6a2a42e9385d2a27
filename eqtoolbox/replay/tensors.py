"""Live tensors: those of the training that a replay can reach, watched, and copied before a write.

Parameters, gradients, states of optimizers and large tensors are too many to copy at each step.
They are copied in the moment before an operation writes into one, and put back afterwards; their
version counters tell of writes that no operation announced.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.replay.states import count_from, elsewhere


class LiveTensors:
    """Tensors as they are now.

    Args:
        named: tensors by the way in which the user's code reaches them.
    """

    def __init__(self, named: Iterable[tuple[Any, Tensor]]) -> None:
        self.paths: list[Any] = []
        self.tensors: list[Tensor] = []
        self._aliases: list[Tensor] = []
        self._flags: list[bool] = []
        self._grads: list[Tensor | None] = []
        self._versions: list[int] = []
        self._copies: dict[int, Tensor] = {}  # by position, made before a write
        self._at: dict[int, list[int]] | None = None  # positions by address of the memory
        self.add(named)

    def add(self, named: Iterable[tuple[Any, Tensor]]) -> None:
        """Watch these, too."""
        pairs = [(path, t) for path, t in named if watchable(t)]
        new = [t for _, t in pairs]
        self.paths += [path for path, _ in pairs]
        self.tensors += new
        self._aliases += [t.detach() for t in new]
        self._flags += [t.requires_grad for t in new]
        self._grads += [t.grad if t.is_leaf else None for t in new]
        self._versions += [t._version for t in new]
        self._at = None

    def before_write(self, tensor: Tensor) -> bool:
        """Copy what an operation is about to write into; whether there was something to copy."""
        if self._at is None:
            self._at = {}
            for k, alias in enumerate(self._aliases):
                self._at.setdefault(address(alias), []).append(k)
            self._at.pop(0, None)  # tensors without entries
        found = self._at.get(address(tensor), ())
        new = [k for k in found if k not in self._copies]
        for k in new:
            self._copies[k] = self._aliases[k].clone()
        return bool(new)

    def undo(self) -> list[Any]:
        """Put back what was written; the paths of tensors whose entries could not be."""
        now = [t._version for t in self.tensors]
        lost = [
            self.paths[k]
            for k, (one, two) in enumerate(zip(now, self._versions, strict=True))
            if one != two and k not in self._copies and not self._moved_away(k)
        ]
        with torch.no_grad():
            for k, copy in self._copies.items():
                self._aliases[k].copy_(copy)
            for k, t in enumerate(self.tensors):
                if self._moved_away(k):
                    t.data = self._aliases[k]
                if t.requires_grad != self._flags[k]:
                    t.requires_grad_(self._flags[k])
                if t.is_leaf and t.grad is not self._grads[k]:
                    t.grad = self._grads[k]
        self._copies.clear()
        if [t._version for t in self.tensors] != self._versions:
            count_from(self.tensors, self._versions)
        return lost

    def _moved_away(self, k: int) -> bool:
        return elsewhere(self.tensors[k], self._aliases[k])


def watchable(tensor: Tensor) -> bool:
    """Whether it has memory of its own kind: no sparse, quantized, meta or inference tensor."""
    plain = tensor.layout == torch.strided and not tensor.is_quantized
    return plain and tensor.device.type != "meta" and not tensor.is_inference()


def address(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; -1 where there is none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return -1
