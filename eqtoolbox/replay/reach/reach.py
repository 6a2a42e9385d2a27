"""Reach: everything mutable that a model and its loss can get hold of, found by walking from them.

Attributes of objects, entries of containers, variables of closures; of the program's own modules
and classes also what the code names (`eqtoolbox.replay.reach.program`). What is made in C and of no
kind known here cannot be looked into, so that a replay may not touch it. Not entered: the insides
of torch, NumPy and the standard library, locks, and the objects of frameworks that run a training.
"""

import array
import contextvars
import csv
import ctypes
import functools
import io
import multiprocessing.context
import os
import random
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data.dataloader import _BaseDataLoaderIter

from eqtoolbox.replay.reach import program, readers
from eqtoolbox.replay.reach.code import used
from eqtoolbox.replay.reach.iterators import OVER
from eqtoolbox.replay.reach.kinds import (
    ALONE,
    constant,
    is_table,
    made_in_c,
    of_a_framework,
    passed_by,
    roots_of,
    slotted,
    tracks,
    users_classes,
)
from eqtoolbox.replay.reach.walk import Walk
from eqtoolbox.replay.thread.scope import LeavesTrace


class Reach(Walk):
    """One walk from `roots`.

    Args:
        roots: what may be used: a model, its loss function, a criterion.
        hosts: modules whose parameters and buffers are exchanged when they are evaluated.

    Raises:
        LeavesTrace: there is more than can be kept; says where.
    """

    def __init__(self, roots: Iterable[Any], hosts: Iterable[nn.Module] = ()) -> None:
        super().__init__(roots, hosts)
        self.run()
        while program.derived(self):
            self.run()

    def read(self, thing: Any, path: Any) -> None:
        kind = type(thing)
        reader = _readers.get(kind)
        if reader is None:
            _readers[kind] = reader = _reader(kind)
        reader(self, thing, path)


Reader = Callable[[Walk, Any, Any], None]
_readers: "weakref.WeakKeyDictionary[type, Reader]" = weakref.WeakKeyDictionary()


def _reader(kind: Any) -> Reader:
    """How things of this type are read."""
    known = next((reader for base, reader in _by_base() if issubclass(kind, base)), None)
    if known is not None:
        return _with_attributes(kind, known)
    if is_table(kind):
        return readers.table
    if roots_of(kind) & ALONE or tracks(kind):
        return readers.alone
    if kind.__module__.startswith(_AROUND):
        return readers.ours
    if of_a_framework(kind):
        return readers.framework if kind.__dictoffset__ else readers.nothing
    if hasattr(kind, "__next__") and made_in_c(kind) is not None:
        return readers.unknown
    if passed_by(kind):
        return readers.nothing
    return readers.plain if made_in_c(kind) is None or constant(kind) else readers.unknown


_AROUND = ("eqtoolbox.enforce", "eqtoolbox.integrations", "eqtoolbox.watch.capture.losses")


def _with_attributes(kind: Any, reader: Reader) -> Reader:
    """Of a kind that a program derives from a known one also its attributes and its class."""
    if reader is readers.file and not users_classes(kind):
        return reader  # a replay answers for `write` of those that speak
    if reader in _WHOLE or not (kind.__dictoffset__ or users_classes(kind) or slotted(kind)):
        return reader
    own = reader is not readers.tensor

    def read(walk: Walk, thing: Any, path: Any) -> None:
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
        (torch.jit.ScriptModule, readers.script),
        (nn.Module, readers.module),
        (_BaseDataLoaderIter, readers.alone),
        (Tensor, readers.tensor),
        (np.ndarray, readers.array),
        (dict, readers.mapping),
        ((list, deque, set), readers.sequence),
        ((tuple, frozenset), readers.fixed),
        (types.FunctionType, program.function),
        (types.CellType, program.cell),
        ((types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType), program.bound),
        (functools.partial, program.partial),
        (type(used), program.cache),
        (torch.optim.Optimizer, readers.optimizer),
        ((random.SystemRandom, multiprocessing.context.BaseContext), readers.nothing),
        (np.random.SeedSequence, readers.alone),
        (type(os.environ), readers.environment),
        ((weakref.ref, *weakref.ProxyTypes), readers.weak),
        (threading.local, readers.local),
        (contextvars.ContextVar, readers.variable),
        ((torch.Generator, random.Random, *streams), readers.stream),
        ((bytearray, array.array), readers.numbers),
        (plain, readers.c_memory),
        ((io.StringIO, io.BytesIO), readers.text),
        (io.IOBase, readers.file),
        ((types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType), readers.alone),
        (types.ModuleType, program.loaded),
        (types.FrameType, program.frame),
        (types.MappingProxyType, readers.proxy),
        ((property, staticmethod, classmethod, super, *_VIEWS), readers.parts),
        (OVER, readers.iterator),
        (type(csv.writer(io.StringIO())), readers.csv_writer),
        (memoryview, readers.memory),
        (type, program.kind),
        ((BaseException, types.SimpleNamespace), readers.plain),
    )


_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_WHOLE = frozenset({  # readers that see to the attributes themselves
    program.bound, program.cell, program.frame, program.function, program.kind, program.loaded,
    readers.alone, readers.environment, readers.local, readers.module, readers.nothing,
    readers.optimizer, readers.plain, readers.script,
})  # fmt: skip


def modules_in(thing: Any) -> list[nn.Module]:
    """Modules that a function, or anything else, can reach, those that hold others first."""
    try:
        return Reach((thing,)).modules
    except LeavesTrace:
        return []
