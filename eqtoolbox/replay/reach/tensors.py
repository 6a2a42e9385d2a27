"""Live tensors: those of the training that a replay can reach, watched, and copied before a write.

Parameters, gradients, states of optimizers and large tensors are too many to copy at each step.
They are copied in the moment before an operation writes into one, and put back afterwards; their
version counters tell of writes that no operation announced.
"""

import threading
from collections.abc import Container, Iterable
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.replay.reach.contents import (
    addresses,
    copied,
    count_from,
    elsewhere,
    gradient,
    parts,
    put_back,
    version,
    write,
)


class LiveTensors:
    """Tensors, and the gradients of these, as they are now.

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
        self._copies: dict[int, list[Tensor]] = {}  # by position, made before a write
        self._at: dict[int, list[int]] | None = None  # positions by address of the memory
        self._known: set[int] = set()
        self._writing = threading.Lock()  # a loss may have threads
        self.add(named)

    def add(self, named: Iterable[tuple[Any, Tensor]], kept: Container[int] = ()) -> None:
        """Watch these, too, but those whose ids are in `kept`."""
        for path, t in named:
            for where, one in ((path, t), ((path, "grad"), gradient(t))):
                if one is not None and id(one) not in self._known and id(one) not in kept:
                    self._watch(where, one)
        self._at = None

    def _watch(self, path: Any, tensor: Tensor) -> None:
        self._known.add(id(tensor))
        self.paths.append(path)
        self.tensors.append(tensor)
        self._aliases.append(tensor.detach())
        self._flags.append(tensor.requires_grad)
        self._grads.append(gradient(tensor))
        self._versions.append(version(tensor))

    def knows(self, tensor: Tensor) -> bool:
        """Whether it is one of these."""
        return id(tensor) in self._known

    def before_write(self, tensor: Tensor) -> bool:
        """Copy what an operation is about to write into; whether there was something to copy."""
        with self._writing:
            if self._at is None:
                self._at = {}
                for k, alias in enumerate(self._aliases):
                    for place in addresses(alias):
                        self._at.setdefault(place, []).append(k)
                self._at.pop(0, None)  # tensors without entries
            found = {k for place in addresses(tensor) for k in self._at.get(place, ())}
            new = found - self._copies.keys()
            for k in new:
                self._copies[k] = copied(self._aliases[k])
        return bool(new)

    def undo(self) -> list[Any]:
        """Put back what was written; the paths of tensors whose entries could not be."""
        now = [*map(version, self.tensors)]
        lost = [
            self.paths[k]
            for k, (one, two) in enumerate(zip(now, self._versions, strict=True))
            if one != two and k not in self._copies and not self._moved_away(k)
        ]
        with torch.no_grad():
            for k, copy in self._copies.items():
                write(self._aliases[k], copy)
            for k, t in enumerate(self.tensors):
                put_back(t, self._aliases[k], self._flags[k], self._grads[k])
        self._copies.clear()
        if [*map(version, self.tensors)] != self._versions:
            count_from(self.tensors, self._versions)
        return lost

    def _moved_away(self, k: int) -> bool:
        return elsewhere(self.tensors[k], self._aliases[k])


def watchable(tensor: Tensor) -> bool:
    """Whether it has entries in memory."""
    return tensor.device.type != "meta" and bool(parts(tensor))
