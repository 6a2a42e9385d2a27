"""Digest of all that Python can reach: values, types, order, and which objects are the same."""

import array
import collections
import functools
import gc
import hashlib
import io
import re
import types
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

ATOMS = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device)


class Walk:
    """Digests one thing after another; an object met before is told by when it was met.

    So a container that was exchanged for an equal copy is a difference wherever somebody else
    holds the first one.
    """

    def __init__(self) -> None:
        self._met: dict[int, int] = {}
        self._alive: list[Any] = []  # no id() is given twice
        self._sha = hashlib.sha256()

    @_disable_dynamo  # hooks call it inside of what is compiled
    def part(self, *things: Any) -> str:
        """Digest of these, read after everything that came before."""
        self._sha = hashlib.sha256()
        self._feed(things)
        return self._sha.hexdigest()[:16]

    def _say(self, *words: Any) -> None:
        self._sha.update(repr(words).encode())

    def _feed(self, x: Any) -> None:
        if isinstance(x, (*ATOMS, np.generic)):
            self._say(type(x).__name__, str(x) if isinstance(x, type) else x)
            return
        if id(x) in self._met:
            self._say("again", self._met[id(x)])
            return
        self._met[id(x)] = len(self._met)
        self._alive.append(x)
        self._say(type(x).__name__)
        self._inside(x)

    def _inside(self, x: Any) -> None:
        if isinstance(x, Tensor):
            self._tensor(x)
        elif isinstance(x, (nn.Module, torch.optim.Optimizer)):  # hooks are compared by name
            self._attributes({k: v for k, v in vars(x).items() if "hooks" not in k})
        elif isinstance(x, (dict, types.MappingProxyType)):
            for key, value in list(x.items()):
                self._feed(key), self._feed(value)
        elif isinstance(x, (list, tuple, collections.deque)):
            for item in x:
                self._feed(item)
        elif isinstance(x, (set, frozenset)):
            self._say(sorted(map(repr, x)))
        elif callable(x):
            self._function(x)
        elif (state := _state(x)) is not None:
            self._feed(state)
        elif hasattr(x, "__dict__") or hasattr(x, "__slots__"):
            self._attributes(_attributes(x))
        else:
            self._say(re.sub(r" at 0x\w+", "", repr(x)))
        if isinstance(x, (dict, list, set)) and hasattr(x, "__dict__"):
            self._attributes(vars(x))

    def _tensor(self, x: Tensor) -> None:
        graph = type(x.grad_fn).__name__
        self._say(x.dtype, tuple(x.shape), x.stride(), x.requires_grad, x.is_leaf, graph)
        raw = x.detach().clone().contiguous().reshape(-1)  # .numpy() would forbid to resize x
        if raw.numel():
            self._sha.update(raw.view(torch.uint8).numpy().tobytes())
        self._attributes(vars(x))
        if x.is_leaf:
            self._feed(x.grad)

    def _attributes(self, attributes: dict[str, Any]) -> None:
        for name in sorted(attributes):
            self._say(name)
            self._feed(attributes[name])

    def _function(self, x: Any) -> None:
        """What a function remembers: its closure, its defaults, its attributes, its cache."""
        self._say(getattr(x, "__qualname__", ""))
        if isinstance(x, functools._lru_cache_wrapper):
            self._say(x.cache_info()[2:])  # its counts of hits and misses nobody can set
            self._feed([x for x in gc.get_referents(x) if isinstance(x, (list, Tensor))])
        if isinstance(x, functools.partial):
            self._feed((x.func, x.args, x.keywords))
        elif isinstance(x, types.MethodType):
            self._feed(x.__self__)
        elif isinstance(x, types.FunctionType):
            cells = [c.cell_contents for c in x.__closure__ or () if c != types.CellType()]
            self._feed((cells, x.__defaults__, x.__kwdefaults__, vars(x)))
        elif not isinstance(x, types.BuiltinFunctionType):
            self._attributes(_attributes(x))


def _state(x: Any) -> Any:
    """The state of an object that keeps it out of sight; None for others."""
    if isinstance(x, torch.Generator):
        return x.get_state()
    if isinstance(x, np.random.Generator):
        return x.bit_generator.state
    if isinstance(x, np.random.RandomState):
        return x.get_state()
    if isinstance(x, np.ndarray):
        return str((x.dtype, x.shape, x.strides)), x.tobytes()
    if isinstance(x, (bytearray, array.array, memoryview)):
        return bytes(x)
    if isinstance(x, types.GeneratorType):
        return dict(x.gi_frame.f_locals) if x.gi_frame else "over"
    if isinstance(x, io.IOBase):
        return "closed" if x.closed else x.tell()
    if isinstance(x, (weakref.WeakKeyDictionary, weakref.WeakValueDictionary)):
        return [(type(k).__name__, v) for k, v in x.items()]
    if isinstance(x, collections.abc.Iterator) and hasattr(x, "__length_hint__"):
        return x.__length_hint__()
    if hasattr(x, "getstate"):  # random.Random
        return x.getstate()
    return None


def _attributes(x: Any) -> dict[str, Any]:
    slots = [s for c in type(x).__mro__ for s in _names(vars(c).get("__slots__", ()))]
    held = {s: getattr(x, s) for s in slots if s[:2] != "__" and hasattr(x, s)}
    return held | getattr(x, "__dict__", {})


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
