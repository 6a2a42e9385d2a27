"""Reach: everything mutable that a model and its loss can get hold of, found by walking from them.

Attributes of objects, entries of containers, variables of closures; of the program's own modules
and classes also what the code names (`eqtoolbox.replay.program`). What is made in C and of no kind
known here cannot be looked into, so that a replay may not touch it. Not entered: the insides of
torch, NumPy and the standard library, locks, and the objects of frameworks that run a training.
"""

import array
import contextlib
import contextvars
import ctypes
import functools
import gc
import io
import os
import random
import threading
import types
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data.dataloader import _BaseDataLoaderIter

from eqtoolbox.replay import program, scripted, slots, states
from eqtoolbox.replay.code import used
from eqtoolbox.replay.kinds import (
    ALONE,
    ATOMS,
    GLOBAL,
    LARGE,
    SMALL,
    STANDARD,
    TABLES,
    constant,
    hides,
    made_in_c,
    of_a_framework,
    passed_by,
    roots_of,
    slotted,
    tracks,
    users_classes,
)
from eqtoolbox.replay.scope import LeavesTrace
from eqtoolbox.replay.tensors import watchable
from eqtoolbox.replay.walk import Walk, word


class Reach(Walk):
    """One walk from `roots`.

    Args:
        roots: what may be used: a model, its loss function, a criterion.
        hosts: modules whose parameters and buffers are exchanged when they are evaluated.

    Raises:
        LeavesTrace: there is more than can be kept; says where.
    """

    def __init__(self, roots: Iterable[Any], hosts: Iterable[nn.Module] = ()) -> None:
        super().__init__(roots)
        self.hosts = {id(m) for host in hosts for m in host.modules()}
        self.run()
        while program.derived(self):
            self.run()

    def read(self, thing: Any, path: Any) -> None:
        kind = type(thing)
        reader = _readers.get(kind)
        if reader is None:
            _readers[kind] = reader = _reader(kind)
        reader(self, thing, path)


def _nothing(walk: Reach, thing: Any, path: Any) -> None:
    pass


def _module(walk: Reach, thing: nn.Module, path: Any) -> None:
    own = vars(thing)
    walk.slots += [slots.Attributes(own, path), slots.Hooks(thing, path)]
    for table in TABLES:
        if table in own:
            walk.slots.append(slots.Entries(own[table], path))
    for name, p in own.get("_parameters", {}).items():
        if p is not None:
            walk.tensors.append(((path, name), p))
            if p.__dict__:
                walk.attributes(p, (path, name))
    for name, b in own.get("_buffers", {}).items():
        if b is not None and id(thing) in walk.hosts:
            walk.tensors.append(((path, name), b))
        else:
            walk.look(b, (path, name))
    walk.modules.append(thing)
    walk.look_named([(name, own[name]) for name in own.keys() - STANDARD], path)
    walk.look_named(own.get("_modules", {}).items(), path)
    program.kind(walk, type(thing), path)


def _script(walk: Reach, thing: torch.jit.ScriptModule, path: Any) -> None:
    walk.modules.append(thing)
    walk.slots.append(scripted.Scripted(thing, path))
    walk.tensors += [((path, name), p) for name, p in thing.named_parameters(recurse=False)]
    for name, value in [*thing.named_buffers(recurse=False), *scripted.plain(thing)]:
        walk.slots.append(states.Contents(value, (path, name)))
    walk.look_named(thing.named_children(), path)


def _tensor(walk: Reach, thing: Tensor, path: Any) -> None:
    if thing.__dict__:
        walk.attributes(thing, path)
    if not watchable(thing):
        return
    if isinstance(thing, nn.Parameter) or thing.numel() * thing.element_size() > SMALL:
        walk.tensors.append((path, thing))
    else:
        walk.slots.append(states.Contents(thing, path))


def _array(walk: Reach, thing: Any, path: Any) -> None:
    if thing.flags.writeable:
        kind = states.Array if thing.nbytes <= LARGE else states.Sample
        walk.slots.append(kind(thing, path))
    if thing.dtype.hasobject:
        walk.look_all(thing.ravel().tolist(), path)


def _mapping(walk: Reach, thing: dict[Any, Any], path: Any) -> None:
    entries = slots.Entries(thing, path)
    walk.slots.append(entries)
    if not ATOMS.issuperset(map(type, entries.held.values())):
        for key, value in entries.held.items():
            walk.look(value, (path, (key,)))
    if not ATOMS.issuperset(map(type, entries.held)):
        walk.look_all([*entries.held], path)
    if isinstance(thing, defaultdict) and thing.default_factory is not None:
        walk.slots.append(slots.Named(thing, path, ("default_factory",)))
        walk.look(thing.default_factory, (path, "default_factory"))


def _sequence(walk: Reach, thing: Any, path: Any) -> None:
    items = slots.Items(thing, path)
    walk.slots.append(items)
    walk.look_all(items.held, path)


def _fixed(walk: Reach, thing: Any, path: Any) -> None:
    if not ATOMS.issuperset(map(type, thing)):
        walk.holders.append((thing, tuple(x for x in thing if type(x) not in ATOMS)))
        walk.look_all(thing, path)


def _parts(walk: Reach, thing: Any, path: Any) -> None:
    """What shows something else: a view of a dict, a property, a class method."""
    walk.held(thing, [x for x in gc.get_referents(thing) if not isinstance(x, type)], path)


def _proxy(walk: Reach, thing: Any, path: Any) -> None:
    """A dict that is shown for reading; not that of a class."""
    inside = [x for x in gc.get_referents(thing) if type(x) is not dict or "__module__" not in x]
    walk.held(thing, inside, path)


def _weak(walk: Reach, thing: Any, path: Any) -> None:
    if isinstance(thing, weakref.ref):
        walk.held(thing, (weakref.ref.__call__(thing),), path)
    else:
        with contextlib.suppress(ReferenceError):  # it is gone
            walk.held(thing, (thing.__reduce_ex__.__self__,), path)


def _memory(walk: Reach, thing: memoryview, path: Any) -> None:
    walk.look(thing.obj, path)


def _optimizer(walk: Reach, thing: torch.optim.Optimizer, path: Any) -> None:
    walk.slots += [slots.Entries(own, path) for own in (vars(thing), thing.state)]
    walk.slots += [slots.Entries(group, path) for group in thing.param_groups]
    walk.slots.append(slots.Items(thing.param_groups, path))
    for group in thing.param_groups:
        walk.slots.append(slots.Items(group["params"], path))
        walk.tensors += [(path, p) for p in group["params"]]
    for p, state in thing.state.items():
        walk.slots.append(slots.Entries(state, path))
        values = [*state.values(), p]
        walk.tensors += [(path, x) for x in values if isinstance(x, Tensor)]
    own = {"state", "param_groups", "defaults"}
    walk.look_named([(n, x) for n, x in vars(thing).items() if n not in own], path)


def _stream(walk: Reach, thing: Any, path: Any) -> None:
    if all(thing is not one for one in GLOBAL):
        walk.slots.append(states.Stream(thing, path))


def _bytes(walk: Reach, thing: Any, path: Any) -> None:
    walk.slots.append(states.Bytes(thing, path))


def _environment(walk: Reach, thing: Any, path: Any) -> None:
    walk.slots.append(states.Environment(thing, path))


def _memory_of(walk: Reach, thing: Any, path: Any) -> None:
    walk.slots.append(states.Memory(thing, path))


def _text(walk: Reach, thing: Any, path: Any) -> None:
    walk.slots.append(states.Text(thing, path))


def _file(walk: Reach, thing: Any, path: Any) -> None:
    if getattr(thing, "name", "") in ("<stdin>", "<stdout>", "<stderr>"):
        return
    try:
        if thing.readable() and not thing.writable() and thing.seekable():
            walk.slots.append(states.Position(thing, path))
            return
    except (OSError, ValueError):  # closed, or in the middle of an iteration
        pass
    _alone(walk, thing, path)


def _alone(walk: Reach, thing: Any, path: Any) -> None:
    walk.loose.append((thing, path))


def _unknown(walk: Reach, thing: Any, path: Any) -> None:
    """Made in C: what it is may not be seen."""
    walk.loose.append((thing, path))
    parts = [x for x in gc.get_referents(thing) if not isinstance(x, type | types.ModuleType)]
    walk.held(thing, parts, path)


def _local(walk: Reach, thing: threading.local, path: Any) -> None:
    own = threading.local.__getattribute__(thing, "__dict__")
    walk.slots.append(slots.Entries(own, path))
    walk.look_named(own.items(), path)


def _variable(walk: Reach, thing: contextvars.ContextVar[Any], path: Any) -> None:
    walk.slots.append(states.Variable(thing, path))
    walk.look(thing.get(None), path)


def _ours(walk: Reach, thing: Any, path: Any) -> None:
    """Of our own around a loss: what it holds of the user's."""
    for value in getattr(thing, "__dict__", {}).values():
        walk.look(value, (None, word(value)))


def _object(walk: Reach, thing: Any, path: Any) -> None:
    walk.attributes(thing, path)
    program.kind(walk, type(thing), path)


def _of_a_framework(walk: Reach, thing: Any, path: Any) -> None:
    """Of a framework, or derived from its: its attributes, and what the program's code names."""
    walk.attributes(thing, path, deep=False)
    kind: Any = type(thing)
    if not users_classes(kind):
        return
    program.kind(walk, kind, path)
    own, named = vars(thing), set[str]()
    for one in users_classes(kind):
        codes = [used(x.__code__) for x in vars(one).values() if isinstance(x, types.FunctionType)]
        named.update(*(code.attributes | code.attributes_set for code in codes))
    plain = (list, dict, set, deque, Tensor, np.ndarray)
    values = [(n, x) for n, x in own.items() if n in named or isinstance(x, plain)]
    walk.look_named(values, path)


Reader = Callable[[Reach, Any, Any], None]
_readers: "weakref.WeakKeyDictionary[type, Reader]" = weakref.WeakKeyDictionary()


def _reader(kind: Any) -> Reader:
    """How things of this type are read."""
    known = next((reader for base, reader in _by_base() if issubclass(kind, base)), None)
    if known is not None:
        return _with_attributes(kind, known)
    if roots_of(kind) & ALONE or tracks(kind):
        return _alone
    if kind.__module__.startswith(("eqtoolbox.capture.losses", "eqtoolbox.integrations")):
        return _ours
    if of_a_framework(kind):
        return _of_a_framework if kind.__dictoffset__ else _nothing
    if (hasattr(kind, "__next__") and made_in_c(kind) is not None) or hides(kind):
        return _unknown
    if passed_by(kind):
        return _nothing
    return _object if made_in_c(kind) is None or constant(kind) else _unknown


def _with_attributes(kind: Any, reader: Reader) -> Reader:
    """Of a kind that a program derives from a known one also its attributes and its class."""
    if reader in _WHOLE or not (kind.__dictoffset__ or users_classes(kind) or slotted(kind)):
        return reader
    own = reader is not _tensor

    def read(walk: Reach, thing: Any, path: Any) -> None:
        reader(walk, thing, path)
        if own:
            walk.attributes(thing, path)
        program.kind(walk, type(thing), path)

    return read


@functools.cache
def _by_base() -> tuple[tuple[Any, Reader], ...]:
    """Readers of kinds and of what derives from them; the first that fits."""
    streams = (np.random.Generator, np.random.RandomState, np.random.BitGenerator)
    plain = (ctypes._SimpleCData, ctypes.Structure, ctypes.Union, ctypes.Array)
    return (
        (torch.jit.ScriptModule, _script),
        (nn.Module, _module),
        (_BaseDataLoaderIter, _alone),
        (Tensor, _tensor),
        (np.ndarray, _array),
        (dict, _mapping),
        ((list, deque, set), _sequence),
        ((tuple, frozenset), _fixed),
        (types.FunctionType, program.function),
        (types.CellType, program.cell),
        ((types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType), program.bound),
        (functools.partial, program.partial),
        (type(used), program.cache),
        (torch.optim.Optimizer, _optimizer),
        (random.SystemRandom, _nothing),
        (np.random.SeedSequence, _alone),
        (type(os.environ), _environment),
        ((weakref.ref, *weakref.ProxyTypes), _weak),
        (threading.local, _local),
        (contextvars.ContextVar, _variable),
        ((torch.Generator, random.Random, *streams), _stream),
        ((bytearray, array.array), _bytes),
        (plain, _memory_of),
        ((io.StringIO, io.BytesIO), _text),
        (io.IOBase, _file),
        ((types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType), _alone),
        (types.ModuleType, program.loaded),
        (types.MappingProxyType, _proxy),
        ((property, staticmethod, classmethod, super, *_VIEWS), _parts),
        (memoryview, _memory),
        (type, program.kind),
        ((BaseException, types.SimpleNamespace), _object),
    )


_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_WHOLE = frozenset({  # readers that see to the attributes themselves
    _module, _script, _alone, _object, _nothing, program.function, program.kind, program.loaded,
    program.cell, program.bound, _local, _optimizer, _environment,
})  # fmt: skip


def modules_in(thing: Any) -> list[nn.Module]:
    """Modules that a function, or anything else, can reach, those that hold others first."""
    try:
        return Reach((thing,)).modules
    except LeavesTrace:
        return []
