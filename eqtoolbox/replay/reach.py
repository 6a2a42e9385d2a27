"""Reach: everything mutable that a model and its loss can get hold of, found by walking from them.

Attributes of objects, entries of containers, variables of closures; of the program's own modules
and classes also what the code names. Not entered: torch, NumPy and the standard library
themselves, loggers, threads and locks, and Trainers of frameworks, which their own integration
keeps quiet.
"""

import array
import contextvars
import functools
import gc
import io
import itertools
import os
import random
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data.dataloader import _BaseDataLoaderIter

from eqtoolbox.replay import slots, states
from eqtoolbox.replay.attributes import attributes_of
from eqtoolbox.replay.code import Used, of_a_user, used
from eqtoolbox.replay.kinds import (
    ALONE,
    ATOMS,
    LARGE,
    MANY,
    SMALL,
    STANDARD,
    TABLES,
    function_of,
    of_a_library,
    passed_by,
    roots_of,
    slotted,
    tracks,
    users_classes,
)
from eqtoolbox.replay.scope import LeavesTrace
from eqtoolbox.replay.slots import Slot
from eqtoolbox.replay.tensors import watchable


class Reach:
    """One walk from `roots`.

    Args:
        roots: what may be used: a model, its loss function, a criterion.
        hosts: modules whose parameters and buffers are exchanged when they are evaluated.

    Raises:
        LeavesTrace: there is more than can be kept; says where.
    """

    def __init__(self, roots: Iterable[Any], hosts: Iterable[nn.Module] = ()) -> None:
        self.slots: list[Slot] = []
        self.tensors: list[tuple[Any, Tensor]] = []
        self.modules: list[nn.Module] = []
        self.tuples: list[tuple[Any, ...]] = []  # those that hold others first
        self.loose: list[tuple[Any, Any]] = []  # (thing, path) that cannot be put back
        self.seen: dict[int, Any] = {}
        self._classes: set[type] = set()
        self._hosts = {id(m) for host in hosts for m in host.modules()}
        self._waiting: list[tuple[Any, Any]] = [(root, (None, _word(root))) for root in roots]
        self._walk()

    def _walk(self) -> None:
        waiting, seen = self._waiting, self.seen
        while waiting:
            thing, path = waiting.pop()
            if id(thing) in seen:
                continue
            seen[id(thing)] = thing
            if len(seen) > MANY:
                raise LeavesTrace(
                    f"the loss can reach more than {MANY:,} objects, the last in {said(path)}: too "
                    "many to be kept for a replay; let it reach what it needs only"
                )
            _reads(type(thing))(self, thing, path)

    def look(self, value: Any, path: Any) -> None:
        """Walk on to a value later."""
        if type(value) not in ATOMS:
            self._waiting.append((value, path))

    # -- kinds ----------------------------------------------------------------------------------

    def nothing(self, thing: Any, path: Any) -> None:
        pass

    def module(self, thing: nn.Module, path: Any) -> None:
        own = vars(thing)
        self.slots += [slots.Attributes(own, path), slots.Hooks(thing, path)]
        for table in TABLES:
            if table in own:
                self.slots.append(slots.Entries(own[table], path))
        for name, p in own.get("_parameters", {}).items():
            if p is not None:
                self.tensors.append(((path, name), p))
                if p.__dict__:
                    self._attributes(p, (path, name))
        for name, b in own.get("_buffers", {}).items():
            if b is None:
                continue
            if id(thing) in self._hosts:
                self.tensors.append(((path, name), b))
            else:
                self._waiting.append((b, (path, name)))
        self.modules.append(thing)
        for table in slots.Hooks.CALLED:
            for hook in (own.get(table) or {}).values():
                self.look(hook, (path, table))
        for name in own.keys() - STANDARD:
            value = own[name]
            if type(value) not in ATOMS:
                self._waiting.append((value, (path, name)))
        for name, inner in own.get("_modules", {}).items():
            self._waiting.append((inner, (path, name)))
        self._class(type(thing), path)

    def tensor(self, thing: Tensor, path: Any) -> None:
        if thing.__dict__:
            self._attributes(thing, path)
        if not watchable(thing):
            return
        if isinstance(thing, nn.Parameter) or thing.numel() * thing.element_size() > SMALL:
            self.tensors.append((path, thing))
        else:
            self.slots.append(states.Contents(thing, path))

    def array(self, thing: Any, path: Any) -> None:
        if thing.flags.writeable:
            kind = states.Array if thing.nbytes <= LARGE else states.Sample
            self.slots.append(kind(thing, path))
        if thing.dtype.hasobject:
            self._all(thing.flat, path)

    def mapping(self, thing: dict[Any, Any], path: Any) -> None:
        entries = slots.Entries(thing, path)
        self.slots.append(entries)
        if not ATOMS.issuperset(map(type, entries.held.values())):
            for key, value in entries.held.items():
                if type(value) not in ATOMS:
                    self._waiting.append((value, (path, (key,))))
        self._attributes(thing, path)

    def sequence(self, thing: Any, path: Any) -> None:
        items = slots.Items(thing, path)
        self.slots.append(items)
        self._all(items.held, path)
        self._attributes(thing, path)

    def fixed(self, thing: Any, path: Any) -> None:
        if isinstance(thing, tuple):
            self.tuples.append(thing)
        self._all(thing, path)

    def function(self, thing: types.FunctionType, path: Any) -> None:
        names = thing.__code__.co_freevars
        for name, cell in zip(names, thing.__closure__ or (), strict=True):
            self.look(cell, (path, name))
            held = slots.contents(cell)
            if issubclass(type(held), types.ModuleType) and not of_a_library(held):
                self._of_module(held, used(thing.__code__))
        if thing.__defaults__:
            self._defaults(thing, thing.__defaults__, path)
        self.look(thing.__kwdefaults__, path)
        self.look(vars(thing), path)
        if of_a_user(thing.__code__.co_filename):
            self._names(thing)

    def cell(self, thing: types.CellType, path: Any) -> None:
        self.slots.append(slots.Cell(thing, path))
        self.look(slots.contents(thing), path)

    def method(self, thing: types.MethodType, path: Any) -> None:
        self.look(thing.__self__, path)
        self.look(thing.__func__, path)

    def partial(self, thing: Any, path: Any) -> None:
        for part in (thing.func, thing.keywords):
            self.look(part, path)
        if thing.args:
            self._defaults(thing, thing.args, path)

    def cache(self, thing: Any, path: Any) -> None:
        """What `functools.lru_cache` has remembered; of one without a limit also how much."""
        limited = thing.cache_parameters()["maxsize"] is not None
        for part in gc.get_referents(thing):
            chained = limited and type(part) is dict  # with the order of use, in C
            if not chained and type(part).__name__ != "_lru_list_elem":
                self.look(part, path)

    def optimizer(self, thing: torch.optim.Optimizer, path: Any) -> None:
        self.slots += [slots.Entries(own, path) for own in (vars(thing), thing.state)]
        self.slots += [slots.Entries(group, path) for group in thing.param_groups]
        for p, state in thing.state.items():
            self.slots.append(slots.Entries(state, path))
            values = [*state.values(), p]
            self.tensors += [(path, x) for x in values if isinstance(x, Tensor)]

    def stream(self, thing: Any, path: Any) -> None:
        if thing is not torch.default_generator:
            self.slots.append(states.Stream(thing, path))

    def bytes_of(self, thing: Any, path: Any) -> None:
        self.slots.append(states.Bytes(thing, path))

    def text(self, thing: Any, path: Any) -> None:
        self.slots.append(states.Text(thing, path))

    def file(self, thing: Any, path: Any) -> None:
        if getattr(thing, "name", "") in ("<stdin>", "<stdout>", "<stderr>"):
            return
        try:
            if thing.readable() and not thing.writable() and thing.seekable():
                self.slots.append(states.Position(thing, path))
                return
        except (OSError, ValueError):  # closed, or in the middle of an iteration
            pass
        self.alone(thing, path)

    def alone(self, thing: Any, path: Any) -> None:
        self.loose.append((thing, path))

    def kind(self, thing: type, path: Any) -> None:
        self._class(thing, path)

    def parts(self, thing: Any, path: Any) -> None:
        """Of our own around a loss: what it holds of the user's."""
        for value in (attributes_of(thing) or {}).values():
            self.look(value, (None, _word(value)))

    def object(self, thing: Any, path: Any) -> None:
        self._attributes(thing, path)
        self._class(type(thing), path)

    def variable(self, thing: contextvars.ContextVar[Any], path: Any) -> None:
        self.slots.append(states.Variable(thing, path))
        self.look(thing.get(None), path)

    # -- parts ----------------------------------------------------------------------------------

    def _defaults(self, thing: Any, given: tuple[Any, ...], path: Any) -> None:
        if not ATOMS.issuperset(map(type, given)):
            self.slots.append(slots.Defaults(thing, path))
            self.look(given, path)

    def _all(self, things: Iterable[Any], path: Any) -> None:
        kinds = {*map(type, things)}
        if kinds == {tuple}:
            kinds = {*map(type, itertools.chain.from_iterable(things))}
        if not kinds <= ATOMS:
            for k, value in enumerate(things):
                if type(value) not in ATOMS:
                    self._waiting.append((value, (path, (k,))))

    def _attributes(self, thing: Any, path: Any) -> None:
        own = attributes_of(thing)
        if own is not None:
            self.slots.append(slots.Entries(own, path))
            for name, value in own.items():
                if type(value) not in ATOMS:
                    self._waiting.append((value, (path, name)))
        kind: Any = type(thing)
        names = slotted(kind)
        if names:
            slot = slots.Names(thing, path, names)
            self.slots.append(slot)
            for name, value in slot.held.items():
                self.look(value, (path, name))

    def _class(self, kind: type, path: Any) -> None:
        if kind in self._classes:
            return
        self._classes.add(kind)
        for one in users_classes(kind):
            if one is not kind and one in self._classes:
                continue
            self._classes.add(one)
            self.slots.append(slots.Class(one, (None, one.__name__)))
            for name, value in vars(one).items():
                inner = value if type(value) is types.FunctionType else function_of(value)
                if type(inner) not in ATOMS:
                    self._waiting.append((inner, (None, f"{one.__name__}.{name}")))

    def _names(self, thing: types.FunctionType) -> None:
        """What the code of a function names in its module, and in modules of the program."""
        space, code = thing.__globals__, used(thing.__code__)
        if code.rebound:
            self.slots.append(slots.Names(space, (None, "the module's"), code.rebound))
        names = _worth_reading.get(thing.__code__)
        if names is None:
            names = tuple(n for n in code.read & space.keys() if not of_a_library(space[n]))
            _worth_reading[thing.__code__] = names
        for name in names:
            value: Any = space.get(name)
            if value is os:
                if "environ" in code.attributes and id(os.environ) not in self.seen:
                    self.seen[id(os.environ)] = os.environ
                    self.slots.append(states.Environment(os.environ, (None, "os.environ")))
            elif issubclass(type(value), types.ModuleType):
                self._of_module(value, code)
            else:
                self._named(space, name, value, (None, name))

    def _named(self, space: dict[str, Any], name: str, value: Any, path: Any) -> None:
        """A value of a name; of what may need a stand-in, the name itself is kept."""
        if issubclass(type(value), tuple) or _reads(type(value)) is Reach.alone:
            self.slots.append(slots.Names(space, path, (name,)))
        self.look(value, path)

    def _of_module(self, value: types.ModuleType, code: Used) -> None:
        space, path = vars(value), (None, value.__name__)
        rebound = code.attributes_set & space.keys()
        if rebound:
            self.slots.append(slots.Names(space, path, rebound))
        for name in code.attributes & space.keys():
            self._named(space, name, space[name], (path, name))


_readers: "weakref.WeakKeyDictionary[type, Callable[..., None]]" = weakref.WeakKeyDictionary()
_worth_reading: "weakref.WeakKeyDictionary[types.CodeType, tuple[str, ...]]" = (
    weakref.WeakKeyDictionary()
)


def _reads(kind: type) -> Callable[..., None]:
    reader = _readers.get(kind)
    if reader is None:
        _readers[kind] = reader = _reader(kind)
    return reader


def _reader(kind: type) -> Callable[..., None]:
    """How things of this type are read."""
    for base, reader in _by_base():
        if issubclass(kind, base):
            return reader
    if roots_of(kind) & ALONE or tracks(kind):
        return Reach.alone
    if hasattr(kind, "__next__") and not kind.__dictoffset__ and not slotted(kind):
        return Reach.alone
    if kind.__module__.startswith(("eqtoolbox.capture.losses", "eqtoolbox.integrations")):
        return Reach.parts
    return Reach.nothing if passed_by(kind) else Reach.object


@functools.cache
def _by_base() -> tuple[tuple[Any, Callable[..., None]], ...]:
    """Readers of kinds and of what derives from them; the first that fits."""
    streams = (np.random.Generator, np.random.RandomState, np.random.BitGenerator)
    return (
        ((torch.jit.ScriptModule, Enum), Reach.nothing),
        (nn.Module, Reach.module),
        (_BaseDataLoaderIter, Reach.alone),
        (Tensor, Reach.tensor),
        (np.ndarray, Reach.array),
        (dict, Reach.mapping),
        ((list, deque, set), Reach.sequence),
        ((tuple, frozenset), Reach.fixed),
        (types.FunctionType, Reach.function),
        (types.CellType, Reach.cell),
        (types.MethodType, Reach.method),
        (functools.partial, Reach.partial),
        (type(used), Reach.cache),
        (torch.optim.Optimizer, Reach.optimizer),
        ((random.SystemRandom, weakref.ref), Reach.nothing),
        (threading.local, Reach.object),
        (contextvars.ContextVar, Reach.variable),
        ((torch.Generator, random.Random, *streams), Reach.stream),
        ((bytearray, array.array), Reach.bytes_of),
        ((io.StringIO, io.BytesIO), Reach.text),
        (io.IOBase, Reach.file),
        ((types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType), Reach.alone),
        (type, Reach.kind),
    )


def _word(root: Any) -> str:
    has_one = issubclass(type(root), types.FunctionType | types.MethodType | type)
    named = root if has_one else type(root)
    return str(named.__qualname__).replace("<locals>.", "")


def modules_in(thing: Any) -> list[nn.Module]:
    """Modules that a function, or anything else, can reach, those that hold others first."""
    try:
        return Reach((thing,)).modules
    except LeavesTrace:
        return []


def said(path: Any) -> str:
    """A path in words: `Net.layers.0.history['mean']`."""
    words: list[str] = []
    while path is not None:
        path, word = path
        words.append(f"[{word[0]!r:.40}]" if isinstance(word, tuple) else f".{word}")
    return "".join(reversed(words)).removeprefix(".")
