"""Readers: what a thing of each kind holds, and in which slots it is kept."""

import contextlib
import contextvars
import gc
import threading
import types
import weakref
from collections import defaultdict, deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eqtoolbox.replay.reach import program, scripted, slots, states
from eqtoolbox.replay.reach.attributes import attributes_of
from eqtoolbox.replay.reach.code import used
from eqtoolbox.replay.reach.iterators import inner
from eqtoolbox.replay.reach.kinds import (
    ATOMS,
    GLOBAL,
    LARGE,
    SMALL,
    STANDARD,
    TABLES,
    passed_by,
    runs_threads,
    users_classes,
)
from eqtoolbox.replay.reach.names import Named, Names
from eqtoolbox.replay.reach.tensors import watchable
from eqtoolbox.replay.reach.walk import Walk, word
from eqtoolbox.replay.thread.tables import live, settled


def nothing(walk: Walk, thing: Any, path: Any) -> None:
    pass


def module(walk: Walk, thing: nn.Module, path: Any) -> None:
    own = vars(thing)
    walk.slots += [slots.Attributes(own, path), slots.Hooks(thing, path)]
    for table in TABLES:
        if table in own:
            walk.slots.append(slots.Entries(live(own[table]), path))
    for name, p in settled(own.get("_parameters", {})).items():
        if p is not None:
            walk.tensors.append(((path, name), p))
            if p.__dict__ and not passed_by(type(p)):
                walk.attributes(p, (path, name))
            if id(thing) not in walk.hosts:
                _hooks(walk, p, (path, name))
    for name, b in own.get("_buffers", {}).items():
        if b is not None and id(thing) in walk.hosts:
            walk.tensors.append(((path, name), b))
        else:
            walk.look(b, (path, name))
    walk.modules.append(thing)
    for table in slots.Hooks.CALLED:
        walk.look_named([(table, hook) for hook in (own.get(table) or {}).values()], path)
    walk.look_named([(name, own[name]) for name in own.keys() - STANDARD], path)
    walk.look_named(own.get("_modules", {}).items(), path)
    program.kind(walk, type(thing), path)


def script(walk: Walk, thing: torch.jit.ScriptModule, path: Any) -> None:
    walk.modules.append(thing)
    walk.slots.append(scripted.Scripted(thing, path))
    walk.tensors += [((path, name), p) for name, p in thing.named_parameters(recurse=False)]
    for name, value in [*thing.named_buffers(recurse=False), *scripted.plain(thing)]:
        walk.keep(value, (path, name))
    walk.look_named(thing.named_children(), path)


def tensor(walk: Walk, thing: Tensor, path: Any) -> None:
    if thing.__dict__ and not passed_by(type(thing)):
        walk.attributes(thing, path)
    _hooks(walk, thing, path)
    if not watchable(thing):
        return
    most = LARGE if thing.is_inference() else SMALL  # whose writes nobody counts
    if isinstance(thing, nn.Parameter) or thing.numel() * thing.element_size() > most:
        walk.tensors.append((path, thing))
    else:
        walk.keep(thing, path)
        walk.look(walk.gradient(thing), (path, "grad"))


def _hooks(walk: Walk, thing: Tensor, path: Any) -> None:
    """What is called when a backward of the loss reaches a tensor."""
    for hooks in (thing._backward_hooks, thing._post_accumulate_grad_hooks):
        if hooks:
            walk.look(hooks, (path, "hooks"))


def array(walk: Walk, thing: Any, path: Any) -> None:
    if thing.flags.writeable:
        kind = states.ArrayState if thing.nbytes <= LARGE else states.Sample
        walk.slots.append(kind(thing, path))
    if thing.dtype.hasobject:
        walk.look_all(thing.ravel().tolist(), path)


def mapping(walk: Walk, thing: dict[Any, Any], path: Any) -> None:
    entries = slots.Entries(thing, path)
    walk.slots.append(entries)
    if not ATOMS.issuperset(map(type, entries.held.values())):
        for key, value in entries.held.items():
            walk.look(value, (path, (key,)))
    if not ATOMS.issuperset(map(type, entries.held)):
        walk.look_all([*entries.held], path)
    if isinstance(thing, defaultdict) and thing.default_factory is not None:
        walk.slots.append(Named(thing, path, ("default_factory",)))
        walk.look(thing.default_factory, (path, "default_factory"))


def sequence(walk: Walk, thing: Any, path: Any) -> None:
    items = slots.Items(thing, path)
    walk.slots.append(items)
    walk.look_all(items.held, path)


def fixed(walk: Walk, thing: Any, path: Any) -> None:
    if not ATOMS.issuperset(map(type, thing)):
        walk.holders.append((thing, tuple(x for x in thing if type(x) not in ATOMS)))
        walk.look_all(thing, path)


def parts(walk: Walk, thing: Any, path: Any) -> None:
    """What shows something else: a view of a dict, a property, a class method."""
    walk.held(thing, [x for x in gc.get_referents(thing) if not isinstance(x, type)], path)


def proxy(walk: Walk, thing: Any, path: Any) -> None:
    """A dict that is shown for reading; not that of a class."""
    inside = [x for x in gc.get_referents(thing) if type(x) is not dict or "__module__" not in x]
    walk.held(thing, inside, path)


def iterator(walk: Walk, thing: Any, path: Any) -> None:
    """One over others."""
    walk.loose.append((thing, path))
    walk.held(thing, inner(thing), path)


def csv_writer(walk: Walk, thing: Any, path: Any) -> None:
    """It keeps nothing itself: what it writes to does."""
    inside = [x for x in gc.get_referents(thing) if type(x).__module__ != "_csv"]
    walk.held(thing, [x for x in inside if not isinstance(x, type)], path)


def weak(walk: Walk, thing: Any, path: Any) -> None:
    if isinstance(thing, weakref.ref):
        walk.held(thing, (weakref.ref.__call__(thing),), path)
    else:
        with contextlib.suppress(ReferenceError):  # it is gone
            walk.held(thing, (thing.__reduce_ex__.__self__,), path)


def memory(walk: Walk, thing: memoryview, path: Any) -> None:
    walk.look(thing.obj, path)


def optimizer(walk: Walk, thing: torch.optim.Optimizer, path: Any) -> None:
    walk.slots += [slots.Entries(own, path) for own in (vars(thing), thing.state)]
    walk.slots += [slots.Entries(group, path) for group in thing.param_groups]
    walk.slots += [slots.Items(group["params"], path) for group in thing.param_groups]
    walk.slots += [slots.Entries(state, path) for state in thing.state.values()]
    walk.slots.append(slots.Items(thing.param_groups, path))
    moved = [p for group in thing.param_groups for p in group["params"]]
    held = [v for state in thing.state.values() for v in state.values()]
    pairs = [(path, x) for x in (*moved, *held) if isinstance(x, Tensor)]
    small = sum(x.numel() * x.element_size() for _, x in pairs) <= LARGE
    if walk.exchanged.isdisjoint(map(id, moved)) and small:
        for _, x in pairs:  # the loss may step it
            walk.keep(x, path)
        grads = [walk.gradient(x) for x in moved]
        pairs = [(path, grad) for grad in grads if grad is not None]
    walk.tensors += pairs
    own = {"state", "param_groups", "defaults"}
    walk.look_named([(n, x) for n, x in vars(thing).items() if n not in own], path)


def stream(walk: Walk, thing: Any, path: Any) -> None:
    if all(thing is not one for one in GLOBAL):
        one = states.Stream(thing, path)
        walk.slots.append(one)
        walk.look(one.seeds, (path, "seed_seq"))


def numbers(walk: Walk, thing: Any, path: Any) -> None:
    walk.slots.append(states.Bytes(thing, path))


def environment(walk: Walk, thing: Any, path: Any) -> None:
    walk.slots.append(states.Environment(thing, path))


def c_memory(walk: Walk, thing: Any, path: Any) -> None:
    walk.slots.append(states.Memory(thing, path))


def text(walk: Walk, thing: Any, path: Any) -> None:
    walk.slots.append(states.Text(thing, path))


def file(walk: Walk, thing: Any, path: Any) -> None:
    if getattr(thing, "name", "") in ("<stdin>", "<stdout>", "<stderr>"):
        return
    try:
        if thing.readable() and not thing.writable() and thing.seekable():
            walk.slots.append(states.Position(thing, path))
            return
    except (OSError, ValueError):  # closed, or in the middle of an iteration
        pass
    alone(walk, thing, path)


def alone(walk: Walk, thing: Any, path: Any) -> None:
    walk.loose.append((thing, path))


def table(walk: Walk, thing: Any, path: Any) -> None:
    """A table of pandas, whose copy shares the objects that stand in it."""
    walk.loose.append((thing, path))
    columns = [thing] if thing.ndim == 1 else [thing.iloc[:, k] for k in range(thing.shape[1])]
    for column in columns:
        if column.dtype == object:
            walk.look_all(column.tolist(), path)


def unknown(walk: Walk, thing: Any, path: Any) -> None:
    """Made in C: what it is may not be seen."""
    walk.loose.append((thing, path))
    parts = [x for x in gc.get_referents(thing) if not isinstance(x, type | types.ModuleType)]
    walk.held(thing, parts, path)


def local(walk: Walk, thing: threading.local, path: Any) -> None:
    own = threading.local.__getattribute__(thing, "__dict__")
    walk.slots.append(slots.Entries(own, path))
    walk.look_named(own.items(), path)


def variable(walk: Walk, thing: contextvars.ContextVar[Any], path: Any) -> None:
    walk.slots.append(states.Variable(thing, path))
    walk.look(thing.get(None), path)


def ours(walk: Walk, thing: Any, path: Any) -> None:
    """Of our own around a loss: what it holds of the user's."""
    for value in (attributes_of(thing) or {}).values():
        walk.look(value, (None, word(value)))


def plain(walk: Walk, thing: Any, path: Any) -> None:
    walk.attributes(thing, path)
    program.kind(walk, type(thing), path)


def framework(walk: Walk, thing: Any, path: Any) -> None:
    """Of a framework, or derived from its: its attributes, and what the program's code names.

    Of threads and events only what the program has added: they are set by other threads, too.
    """
    kind: Any = type(thing)
    own, mine = vars(thing), users_classes(kind)
    if runs_threads(kind):
        names = {*own}.union(*map(vars, mine)) if mine else ()
        walk.slots.append(Names(own, path, [n for n in names if not n.startswith("_")]))
    else:
        walk.attributes(thing, path, deep=False)
    if not mine:
        return
    program.kind(walk, kind, path)
    named = set[str]()
    for one in mine:
        codes = [used(x.__code__) for x in vars(one).values() if isinstance(x, types.FunctionType)]
        named.update(*(code.attributes | code.attributes_set for code in codes))
    small = (list, dict, set, deque, Tensor, np.ndarray)
    values = [(n, x) for n, x in own.items() if n in named or isinstance(x, small)]
    walk.look_named(values, path)
