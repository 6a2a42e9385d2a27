"""A slot: one mutable thing of a program, what it held when it was looked at, and how to put it back.

Containers are kept by the identity of what they hold, numbers and states of generators by value.
"""

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, MutableMapping
from types import CellType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GONE = object()  # in the place of what was not there
Exchange = Mapping[int, Any]  # stand-ins by the id of what they stand for


class Slot(ABC):
    """What one object held. `path` says how the user's code reaches it."""

    __slots__ = ("owner", "path")
    owner: Any
    path: Any

    def again(self) -> "Slot":
        """What the same thing holds now."""
        return type(self)(self.owner, self.path)  # type: ignore[call-arg]

    @abstractmethod
    def moved(self, exchange: Exchange) -> bool:
        """Whether it holds something else now; stand-ins count as what they stand for."""

    @abstractmethod
    def restore(self, exchange: Exchange) -> None:
        """Make it hold what it held, with the stand-ins of `exchange`."""


class Entries(Slot):
    """The entries of a dict, or the attributes of an object, in order."""

    __slots__ = ("held", "ids")

    def __init__(self, owner: MutableMapping[Any, Any], path: Any) -> None:
        self.owner, self.path = owner, path
        self.held = dict.copy(owner) if type(owner) is dict else dict(owner.items())
        self.ids = [*map(id, self.held), *map(id, self.held.values())]

    def moved(self, exchange: Exchange) -> bool:
        now = self.owner
        if not exchange:
            return [*map(id, now), *map(id, now.values())] != self.ids
        wanted = [id(exchange.get(i, GONE)) if i in exchange else i for i in self.ids]
        return [*map(id, now), *map(id, now.values())] != wanted

    def restore(self, exchange: Exchange) -> None:
        if self.moved(exchange):
            self.owner.clear()
            self.owner.update({k: exchange.get(id(v), v) for k, v in self.held.items()})


class Items(Slot):
    """The items of a list, a deque or a set."""

    __slots__ = ("held",)

    def __init__(self, owner: Any, path: Any) -> None:
        self.owner, self.path, self.held = owner, path, list(owner)

    def _wanted(self, exchange: Exchange) -> list[Any]:
        return [exchange.get(id(x), x) for x in self.held] if exchange else self.held

    def moved(self, exchange: Exchange) -> bool:
        now, wanted = list(self.owner), self._wanted(exchange)
        if isinstance(self.owner, set):  # its order says nothing
            return {*map(id, now)} != {*map(id, wanted)}
        return [*map(id, now)] != [*map(id, wanted)]

    def restore(self, exchange: Exchange) -> None:
        if not self.moved(exchange):
            return
        wanted = self._wanted(exchange)
        if isinstance(self.owner, list):
            self.owner[:] = wanted
        else:
            self.owner.clear()
            (self.owner.extend if isinstance(self.owner, deque) else self.owner.update)(wanted)


class Names(Slot):
    """Some names of a namespace, or the attributes of an object with slots."""

    __slots__ = ("_delete", "_get", "_set", "held")

    def __init__(self, owner: Any, path: Any, names: Any) -> None:
        self.owner, self.path = owner, path
        if isinstance(owner, dict):
            self._get: Any = lambda name: owner.get(name, GONE)
            self._set: Any = owner.__setitem__
            self._delete: Any = owner.__delitem__
        else:
            self._get = lambda name: getattr(owner, name, GONE)
            self._set = lambda name, value: object.__setattr__(owner, name, value)
            self._delete = lambda name: object.__delattr__(owner, name)
        self.held = {name: self._get(name) for name in names}

    def again(self) -> "Names":
        return Names(self.owner, self.path, self.held)

    def moved(self, exchange: Exchange) -> bool:
        return any(self._get(n) is not exchange.get(id(v), v) for n, v in self.held.items())

    def restore(self, exchange: Exchange) -> None:
        for name, value in self.held.items():
            wanted = exchange.get(id(value), value)
            if self._get(name) is not wanted:
                self._delete(name) if wanted is GONE else self._set(name, wanted)


class Class(Slot):
    """The attributes of a class."""

    __slots__ = ("held",)

    def __init__(self, owner: type, path: Any) -> None:
        self.owner, self.path, self.held = owner, path, dict(vars(owner))

    def moved(self, exchange: Exchange) -> bool:
        now, held = vars(self.owner), self.held
        return [*map(id, now.values())] != [*map(id, held.values())] or now.keys() != held.keys()

    def restore(self, exchange: Exchange) -> None:
        if self.moved(exchange):
            now = dict(vars(self.owner))
            for name in now.keys() - self.held.keys():
                type.__delattr__(self.owner, name)
            for name, value in self.held.items():
                if now.get(name, GONE) is not value:
                    type.__setattr__(self.owner, name, value)


class Hooks(Slot):
    """The tables of hooks of a module."""

    __slots__ = ("_sizes", "_tables", "held")
    NAMES = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
        "_forward_hooks_always_called",
    )

    def __init__(self, owner: Any, path: Any) -> None:
        self.owner, self.path = owner, path
        own = vars(owner)
        self._tables = [own[n] for n in self.NAMES if own.get(n) is not None]
        self._sizes = [*map(len, self._tables)]
        self.held = [t.copy() for t in self._tables] if any(self._sizes) else None

    def moved(self, exchange: Exchange) -> bool:
        if [*map(len, self._tables)] != self._sizes:
            return True
        pairs = zip(self._tables, self.held or (), strict=False)
        return any(t.keys() != held.keys() for t, held in pairs)

    def restore(self, exchange: Exchange) -> None:
        if self.moved(exchange):
            for k, table in enumerate(self._tables):
                table.clear()
                table.update(self.held[k] if self.held else {})


class Cell(Slot):
    """A variable of a closure."""

    __slots__ = ("held",)

    def __init__(self, owner: CellType, path: Any) -> None:
        self.owner, self.path, self.held = owner, path, contents(owner)

    def moved(self, exchange: Exchange) -> bool:
        return contents(self.owner) is not exchange.get(id(self.held), self.held)

    def restore(self, exchange: Exchange) -> None:
        if not self.moved(exchange):
            return
        if self.held is GONE:
            del self.owner.cell_contents
        else:
            self.owner.cell_contents = exchange.get(id(self.held), self.held)


def contents(cell: CellType) -> Any:
    """What a variable of a closure is bound to, `GONE` while it is not."""
    try:
        return cell.cell_contents
    except ValueError:
        return GONE


class Bytes(Slot):
    """A bytearray or an array of numbers of the standard library."""

    __slots__ = ("held",)

    def __init__(self, owner: Any, path: Any) -> None:
        self.owner, self.path, self.held = owner, path, owner[:]

    def moved(self, exchange: Exchange) -> bool:
        return bytes(self.owner) != bytes(self.held)

    def restore(self, exchange: Exchange) -> None:
        if self.moved(exchange):
            self.owner[:] = self.held


class Array(Slot):
    """A NumPy array that may be written."""

    __slots__ = ("held",)

    def __init__(self, owner: NDArray[Any], path: Any) -> None:
        self.owner, self.path, self.held = owner, path, owner.copy()

    def moved(self, exchange: Exchange) -> bool:
        now, held = self.owner, self.held
        if now.shape != held.shape or now.dtype != held.dtype:
            return True
        return now.dtype.hasobject or now.tobytes() != held.tobytes()

    def restore(self, exchange: Exchange) -> None:
        if self.owner.shape != self.held.shape:  # `resize` or a new `shape`
            self.owner.resize(self.held.shape, refcheck=False)
        if self.moved(exchange):
            np.copyto(self.owner, self.held)


class Sample(Slot):
    """Some of the numbers of a NumPy array that is too large to copy; it cannot be put back."""

    __slots__ = ("held",)
    COUNT = 4096

    def __init__(self, owner: NDArray[Any], path: Any) -> None:
        self.owner, self.path, self.held = owner, path, self._some()

    def _some(self) -> bytes:
        flat = self.owner.reshape(-1) if self.owner.flags.c_contiguous else self.owner[:1].ravel()
        return bytes(flat[:: max(1, len(flat) // self.COUNT)].tobytes())

    def moved(self, exchange: Exchange) -> bool:
        return self._some() != self.held

    def restore(self, exchange: Exchange) -> None:
        """Nothing was kept."""


class Stream(Slot):
    """A random generator of the program's own: torch's, NumPy's new and old ones, Python's."""

    __slots__ = ("_get", "_set", "held")

    def __init__(self, owner: Any, path: Any) -> None:
        self.owner, self.path = owner, path
        if isinstance(owner, torch.Generator):
            self._get, self._set = owner.get_state, owner.set_state
        elif isinstance(owner, random.Random):
            self._get, self._set = owner.getstate, owner.setstate
        elif isinstance(owner, np.random.RandomState):
            self._get, self._set = owner.get_state, owner.set_state
        else:
            bits = owner.bit_generator if isinstance(owner, np.random.Generator) else owner
            self._get = lambda: bits.state
            self._set = lambda state: setattr(bits, "state", state)
        self.held = self._get()

    def moved(self, exchange: Exchange) -> bool:
        return not alike(self._get(), self.held)

    def restore(self, exchange: Exchange) -> None:
        self._set(self.held)


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


class Text(Slot):
    """A file in memory: its contents and the place in it."""

    __slots__ = ("held",)

    def __init__(self, owner: Any, path: Any) -> None:
        self.owner, self.path, self.held = owner, path, (owner.getvalue(), owner.tell())

    def moved(self, exchange: Exchange) -> bool:
        return (self.owner.getvalue(), self.owner.tell()) != self.held

    def restore(self, exchange: Exchange) -> None:
        if self.moved(exchange):
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

    def restore(self, exchange: Exchange) -> None:
        self.owner.seek(self.held)


class Contents(Slot):
    """The entries of a small tensor that no module has registered."""

    __slots__ = ("_alias", "_version", "held")

    def __init__(self, owner: Tensor, path: Any) -> None:
        self.owner, self.path = owner, path
        self._alias = owner.detach()  # the memory itself, were another set
        self._version = owner._version
        self.held = self._alias.clone()

    def moved(self, exchange: Exchange) -> bool:
        if self.owner._version != self._version or elsewhere(self.owner, self._alias):
            return True
        return not same_entries(self._alias, self.held)  # `.data` counts no version

    def restore(self, exchange: Exchange) -> None:
        if self.moved(exchange):
            with torch.no_grad():
                if not same_entries(self._alias, self.held):
                    self._alias.copy_(self.held)
                if elsewhere(self.owner, self._alias):
                    self.owner.data = self._alias
            put_back([self.owner], [self._version])


def elsewhere(tensor: Tensor, alias: Tensor) -> bool:
    """Whether a tensor has other memory, another type or another shape than its alias had."""
    if tensor.dtype != alias.dtype or tensor.shape != alias.shape:
        return True
    return tensor.data_ptr() != alias.data_ptr()


def same_entries(a: Tensor, b: Tensor) -> bool:
    """Whether all entries are the same, NaN being so, too."""
    return torch.equal(a, b) or not bool(((a != b) & ((a == a) | (b == b))).any())


def put_back(tensors: list[Tensor], versions: list[int]) -> None:
    """Count writes from where they were: a graph that has saved a tensor finds it unwritten."""
    counters = torch.autograd._unsafe_preserve_version_counter(tuple(tensors))
    counters.prev_versions = tuple(versions)
    counters.__exit__()
