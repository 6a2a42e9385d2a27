"""States: slots of what holds numbers itself, kept by value: arrays, generators, files."""

import random
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqtoolbox.replay.slots import GONE, Exchange, Slot


class Bytes(Slot):
    """A bytearray or an array of numbers of the standard library."""

    __slots__ = ("held",)

    def __init__(self, owner: Any, path: Any) -> None:
        self.owner, self.path, self.held = owner, path, owner[:]

    def moved(self, exchange: Exchange) -> bool:
        return bytes(self.owner) != bytes(self.held)

    def put_back(self, exchange: Exchange) -> None:
        self.owner[:] = self.held


class Memory(Slot):
    """Something else whose memory may be written, such as a number of C."""

    __slots__ = ("held",)

    def __init__(self, owner: Any, path: Any) -> None:
        self.owner, self.path, self.held = owner, path, bytes(memoryview(owner))

    def moved(self, exchange: Exchange) -> bool:
        return bytes(memoryview(self.owner)) != self.held

    def put_back(self, exchange: Exchange) -> None:
        memoryview(self.owner).cast("B")[:] = self.held


class Array(Slot):
    """A NumPy array that may be written."""

    __slots__ = ("held",)

    def __init__(self, owner: NDArray[Any], path: Any) -> None:
        self.owner, self.path, self.held = owner, path, np.array(owner, subok=False)

    def moved(self, exchange: Exchange) -> bool:
        now, held = np.asarray(self.owner), self._wanted(exchange)
        if now.shape != held.shape or now.dtype != held.dtype:
            return True
        if now.dtype.hasobject:
            return any(a is not b for a, b in zip(now.flat, held.flat, strict=True))
        return bool(now.tobytes() != held.tobytes())

    def put_back(self, exchange: Exchange) -> None:
        if self.owner.shape != self.held.shape:  # `resize` or a new `shape`
            self.owner.resize(self.held.shape, refcheck=False)
        np.copyto(np.asarray(self.owner), self._wanted(exchange))

    def _wanted(self, exchange: Exchange) -> NDArray[Any]:
        if not exchange or not self.held.dtype.hasobject or self.held.dtype.names:
            return self.held
        wanted = self.held.copy()
        for k, one in enumerate(self.held.flat):
            wanted.flat[k] = exchange.get(id(one), one)
        return wanted


class Sample(Slot):
    """Some of the numbers of a NumPy array that is too large to copy; it cannot be put back."""

    __slots__ = ("held",)
    COUNT = 4096

    def __init__(self, owner: NDArray[Any], path: Any) -> None:
        self.owner, self.path, self.held = owner, path, self._some(owner)

    def _some(self, owner: NDArray[Any]) -> bytes:
        flat = owner.reshape(-1) if owner.flags.c_contiguous else owner[:1].ravel()
        return bytes(flat[:: max(1, len(flat) // self.COUNT)].tobytes())

    def moved(self, exchange: Exchange) -> bool:
        return self._some(self.owner) != self.held

    def put_back(self, exchange: Exchange) -> None:
        """Nothing was kept."""


class Stream(Slot):
    """A random generator of the program's own: torch's, NumPy's new and old ones, Python's.

    The seeds that NumPy's new ones spawn children from count them, and cannot be set back: they
    are exchanged for a copy while a loss is evaluated.
    """

    __slots__ = ("_bits", "_get", "_set", "held", "seeds")

    def __init__(self, owner: Any, path: Any) -> None:
        self.owner, self.path = owner, path
        self._bits: Any = None
        self.seeds: Any = None
        self._get: Any
        self._set: Any
        if isinstance(owner, random.Random):
            self._get, self._set = owner.getstate, owner.setstate
        elif isinstance(owner, torch.Generator | np.random.RandomState):
            self._get, self._set = owner.get_state, owner.set_state
        else:
            bits = owner.bit_generator if isinstance(owner, np.random.Generator) else owner
            if hasattr(bits, "spawn"):  # NumPy 1.25
                self._bits, self.seeds = bits, bits.seed_seq
            self._get = lambda: bits.state
            self._set = lambda state: setattr(bits, "state", state)
        self.held = self._get()

    def moved(self, exchange: Exchange) -> bool:
        if self._bits is not None and self._bits.seed_seq is not self._wanted(exchange):
            return True
        return not alike(self._get(), self.held)

    def put_back(self, exchange: Exchange) -> None:
        if self._bits is not None:
            self._bits.__setstate__((self.held, self._wanted(exchange)))
        else:
            self._set(self.held)

    def _wanted(self, exchange: Exchange) -> Any:
        return exchange.get(id(self.seeds), self.seeds)


def alike(a: Any, b: Any) -> bool:
    """Whether two states of random generators are the same."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(v, b[k]) for k, v in a.items())
    if isinstance(a, tuple):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


class Variable(Slot):
    """A context variable."""

    __slots__ = ("held",)

    def __init__(self, owner: ContextVar[Any], path: Any) -> None:
        self.owner, self.path, self.held = owner, path, owner.get(GONE)

    def moved(self, exchange: Exchange) -> bool:
        return self.owner.get(GONE) is not exchange.get(id(self.held), self.held)

    def put_back(self, exchange: Exchange) -> None:
        if self.held is not GONE:  # to nothing it cannot be set
            self.owner.set(exchange.get(id(self.held), self.held))


class Environment(Slot):
    """The variables of the process's environment."""

    __slots__ = ("held",)

    def __init__(self, owner: Any, path: Any) -> None:
        self.owner, self.path, self.held = owner, path, dict(owner)

    def moved(self, exchange: Exchange) -> bool:
        return dict(self.owner) != self.held

    def put_back(self, exchange: Exchange) -> None:
        for name in self.owner.keys() - self.held.keys():
            del self.owner[name]
        self.owner.update(self.held)


class Text(Slot):
    """A file in memory: its contents and the place in it."""

    __slots__ = ("held",)

    def __init__(self, owner: Any, path: Any) -> None:
        self.owner, self.path, self.held = owner, path, (owner.getvalue(), owner.tell())

    def moved(self, exchange: Exchange) -> bool:
        return (self.owner.getvalue(), self.owner.tell()) != self.held

    def put_back(self, exchange: Exchange) -> None:
        self.owner.seek(0)
        self.owner.truncate()
        self.owner.write(self.held[0])
        self.owner.seek(self.held[1])


class Position(Slot):
    """The place in a file that is only read."""

    __slots__ = ("held",)

    def __init__(self, owner: Any, path: Any) -> None:
        self.owner, self.path, self.held = owner, path, owner.tell()

    def moved(self, exchange: Exchange) -> bool:
        return bool(self.owner.tell() != self.held)

    def put_back(self, exchange: Exchange) -> None:
        self.owner.seek(self.held)
