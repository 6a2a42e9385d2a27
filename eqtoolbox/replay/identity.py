"""Identity: what a loss is made of, told apart from step to step without evaluating it."""

import dis
import functools
import hashlib
import types
from collections.abc import Hashable, Iterator, Mapping
from itertools import islice
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.replay.objective import Objective
from eqtoolbox.replay.reach.attributes import attributes_of

DEPTH = 4  # how far a loss function is looked into
MANY = 100  # members of a list that are looked at
_BARE = nn.Module().__dict__.keys()  # what every module has first, in this order
_COUNT = len(_BARE)
_PLAIN = {bool, str, bytes, type(None), type, torch.dtype, types.BuiltinFunctionType}
# Frameworks' own bookkeeping: numbered names, where a fit goes on, what runs at present
_LABELS = {"name", "_name", "path", "_path", "_parent_path", "_initial_epoch", "_current_fx_name"}
_TORCH = _PLAIN | {int, float, tuple, types.FunctionType}
_ATTRIBUTES = _PLAIN | {tuple, list}
_Seen = set[int]  # objects that were looked at already


def identity(objective: Objective, params: Mapping[str, Tensor]) -> Hashable:
    """Equal for two steps where what was found out about the loss of one holds for the other.

    It has names, shapes, types and devices of the parameters that are trained; class, constants
    and training flag of every module; and the code of the loss function with what it reaches in
    its closure, defaults and globals: functions, modules, and plain values. Numbers of torch's own
    modules count as they are. Others count by whether they are 0, 1, 2 or 3, since schedules move
    all the time, and not at all where the object's own methods set them, as counters are. Values
    of tensors and what hooks do are not seen.
    """
    seen: _Seen = set()
    model = _module(objective.model, seen, flags=not objective.flags)
    losses = tuple(dict.fromkeys(_walk(part.loss_fn, set(seen), DEPTH) for part in objective.calls))
    found = _trained(params), objective.flags, model, losses
    try:
        hash(found)
    except TypeError:  # a list inside of a constant
        return repr(found)
    return found


def digest(key: Hashable) -> str:
    """The same for equal keys in another process, where code and classes are other objects."""
    return hashlib.sha256(repr(_stable(key)).encode()).hexdigest()[:32]


def _trained(params: Mapping[str, Tensor]) -> Hashable:
    return tuple([(n, p.shape, p.dtype, p.device) for n, p in params.items()])


def _module(module: nn.Module, seen: _Seen, flags: bool = True) -> Hashable:
    """Classes and constants of all submodules, in order; with their training flags."""
    found: list[Any] = []
    waiting: list[Any] = [module]
    while waiting:
        m = waiting.pop()
        if m is None or id(m) in seen:
            found.append(None)
            continue
        seen.add(id(m))
        own, kind = m.__dict__, type(m)
        found += (kind, m.training if flags else None, _constants(own, kind, seen))
        children = own.get("_modules", m._modules).items()  # of a scripted module it is no dict
        if children:
            found.append(tuple([name for name, _ in children]))
            waiting += [child for _, child in children]
    return tuple(found)


def _constants(own: dict[str, Any], kind: type, seen: _Seen) -> Hashable:
    """A module's own attributes that are plain, or called."""
    if kind.__module__.startswith("torch.nn."):
        return tuple([v for v in islice(own.values(), _COUNT, None) if type(v) in _TORCH])
    found: list[Any] = [("", _class(kind, seen))]
    for name, value in _attributes(own, kind):
        if name not in _BARE:
            found.append((name, _walk(value, seen, 1)))
    return tuple(sorted(found, key=itemgetter(0)))


def _attributes(own: dict[str, Any], kind: type) -> Iterator[tuple[str, Any]]:
    """What an object holds that is plain or called, but labels and the counters that it moves."""
    for name in own.keys() - _LABELS:
        value = own[name]
        if value is None or value is False:
            continue
        if type(value) in (int, float):
            if name not in _moved(kind):
                yield name, value
        elif type(value) in _ATTRIBUTES or callable(value):
            yield name, value


@functools.lru_cache(maxsize=1000)
def _moved(kind: Any) -> frozenset[str]:
    """Attributes that the methods of a class set later than at construction."""
    codes = [
        f.__code__
        for c in kind.__mro__
        if not c.__module__.startswith("torch.")
        for name, f in vars(c).items()
        if type(f) is types.FunctionType and name != "__init__"
    ]
    every = (i for code in codes for i in dis.get_instructions(code))
    return frozenset(i.argval for i in every if i.opname == "STORE_ATTR")


def _class(kind: type, seen: _Seen) -> Hashable:
    """A module's class: its own code too, once, as it may change between two sessions."""
    if id(kind) in seen:
        return ()
    seen.add(id(kind))
    codes = [f.__code__ for f in vars(kind).values() if type(f) is types.FunctionType]
    forward = next((vars(c)["forward"] for c in kind.__mro__ if "forward" in vars(c)), None)
    return (*codes, _walk(forward, seen, 2))


def _walk(thing: Any, seen: _Seen, depth: int) -> Any:
    """What a loss function, or something that it reaches, is made of."""
    kind = type(thing)  # proxies may answer to `isinstance` for others, or raise
    if kind in _PLAIN or issubclass(kind, type):
        return thing
    if kind is int or kind is float:
        return _number(thing)
    if issubclass(kind, Tensor) or id(thing) in seen or depth < 0:
        return kind
    if issubclass(kind, nn.Module):
        return _module(thing, seen)
    seen.add(id(thing))
    parts = (_walk(part, seen, depth - 1) for part in _parts(thing))
    code = thing.__code__ if issubclass(kind, types.FunctionType) else None
    return kind, code, *parts


def _parts(thing: Any) -> Iterator[Any]:
    """What it is made of; of what cannot be called nothing but its class counts."""
    kind = type(thing)
    if issubclass(kind, tuple | list):
        yield from thing[:MANY]
    elif issubclass(kind, dict):
        yield from dict.values(thing)
    elif issubclass(kind, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif issubclass(kind, types.MethodType):
        yield from (thing.__func__, *_owner(thing.__self__))
    elif issubclass(kind, types.FunctionType):
        if not str(thing.__module__).startswith("torch."):
            yield from (thing.__defaults__, thing.__kwdefaults__, *_closed(thing))
    elif callable(thing):
        yield from _owner(thing)


def _owner(thing: Any) -> Iterator[Any]:
    if issubclass(type(thing), nn.Module):
        yield thing
        return
    yield type(thing)
    held = _attributes(attributes_of(thing) or {}, type(thing))
    for pair in sorted(held, key=itemgetter(0)):
        yield from pair


def _closed(function: types.FunctionType) -> Iterator[Any]:
    """What the names in a function stand for outside of it; a cell may be empty yet."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            yield None
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield from (name, function.__globals__[name])


@functools.lru_cache(maxsize=1000)
def _names(code: types.CodeType) -> tuple[str, ...]:
    inner = [n for c in code.co_consts if isinstance(c, types.CodeType) for n in _names(c)]
    return (*code.co_names, *inner)


def _number(value: float) -> Hashable:
    return value if value in (0, 1, 2, 3) else float


def _stable(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(_stable(part) for part in key)
    if isinstance(key, types.CodeType):
        return key.co_qualname, key.co_code, key.co_names, _stable(key.co_consts)
    if isinstance(key, frozenset):
        return sorted(map(repr, key))
    if isinstance(key, (type, types.BuiltinFunctionType, types.FunctionType)):
        return f"{key.__module__}.{key.__qualname__}"
    return key
