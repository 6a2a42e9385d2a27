"""A write: one value put in the place of another, and back again bit for bit."""

from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

MISSING = object()  # no value


class Write(ABC):
    """One thing that an act changes; what was there is kept from the beginning."""

    @abstractmethod
    def put(self) -> None:
        """Write the new value."""

    @abstractmethod
    def back(self) -> None:
        """Write what was there."""


class Into(Write):
    """The entries of a tensor, which stays the object that it is."""

    def __init__(self, target: Tensor, new: Tensor) -> None:
        self.target, self.new = target, new.to(target, copy=True)  # it may be of other targets
        self.old = target.detach().clone()
        self.overflows = bool((new.isfinite() & ~self.new.isfinite()).any())

    def put(self) -> None:
        self.target.copy_(self.new)

    def back(self) -> None:
        self.target.copy_(self.old)

    @property
    def spoils(self) -> bool:
        """Whether what was finite is not any more."""
        return bool(self.old.isfinite().all() and not self.new.isfinite().all())


class Keyed(Write):
    """An entry of a dict, which `MISSING` takes out."""

    def __init__(self, of: MutableMapping[Any, Any], key: Any, new: Any) -> None:
        self.of, self.key, self.new = of, key, new
        self.old = of.get(key, MISSING)

    def put(self) -> None:
        self._set(self.new)

    def back(self) -> None:
        self._set(self.old)

    def _set(self, value: Any) -> None:
        if value is MISSING:
            self.of.pop(self.key, None)
        else:
            self.of[self.key] = value


class Grad(Write):
    """`.grad` made or taken away."""

    def __init__(self, of: Tensor, new: Tensor | None) -> None:
        self.of, self.new, self.old = of, new, of.grad

    def put(self) -> None:
        self.of.grad = self.new

    def back(self) -> None:
        self.of.grad = self.old


def all_or_none(writes: Sequence[Write], then: Callable[[], None]) -> None:
    """Every write, and what follows; after an exception in any of it, none."""
    begun: list[Write] = []
    try:
        with torch.no_grad():
            for write in writes:
                begun.append(write)
                write.put()
        then()
    except BaseException:
        with torch.no_grad():
            for write in reversed(begun):
                write.back()
        raise
