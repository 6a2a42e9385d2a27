"""A stand-in: what a replay finds in the place of a thing that could not be put back once used.

Generators, files that are written, queues and connections go on by themselves: they are refused
by name at the first touch, before they have moved. Trackers of experiments are told nothing.
"""

from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from eqtoolbox.replay.reach.kinds import ATOMS, TRACKERS, tracks
from eqtoolbox.replay.thread.scope import current


class StandIn:
    """Refuses whatever a replay asks of it; to other threads it is the thing itself."""

    __slots__ = ("_eqtoolbox_thing", "_eqtoolbox_why")

    def __init__(self, thing: Any, why: str) -> None:
        object.__setattr__(self, "_eqtoolbox_thing", thing)
        object.__setattr__(self, "_eqtoolbox_why", why)

    def __getattribute__(self, name: str) -> Any:
        thing = _thing(self)
        if name == "__class__":
            return type(thing)
        _refuse(self)
        return getattr(thing, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _refuse(self)
        setattr(_thing(self), name, value)

    def __bool__(self) -> bool:
        kind = type(_thing(self))
        if hasattr(kind, "__len__") or hasattr(kind, "__bool__"):
            _refuse(self)
        return bool(_thing(self))


class Silent(StandIn):
    """A tracker of experiments: shows what it holds, and does nothing of what it is told."""

    __slots__ = ()
    _READS = frozenset({"as_dict", "get", "items", "keys", "values"})  # of what is like a dict

    def __getattribute__(self, name: str) -> Any:
        if current() is None or name == "__class__":
            return super().__getattribute__(name)
        value = getattr(_thing(self), name)
        reads = name in Silent._READS and hasattr(_thing(self), "__getitem__")
        return value if reads else _shown(value)

    def __setattr__(self, name: str, value: Any) -> None:
        if current() is None:
            super().__setattr__(name, value)

    def __bool__(self) -> bool:
        return bool(_thing(self))


def _thing(one: StandIn) -> Any:
    return object.__getattribute__(one, "_eqtoolbox_thing")


def _refuse(one: StandIn) -> None:
    replay = current()
    if replay is not None:
        replay.refuse(object.__getattribute__(one, "_eqtoolbox_why"))


def _shown(value: Any) -> Any:
    """What a replay sees of something that a tracker holds."""
    replay = current()
    owner = getattr(value, "__self__", None)
    if isinstance(value, MethodType | BuiltinFunctionType) and tracks(type(owner)):
        return _nothing
    if isinstance(value, FunctionType) and value.__module__.partition(".")[0] in TRACKERS:
        return _nothing
    if tracks(type(value)):
        return Silent(value, "")
    if replay is not None and type(value) not in ATOMS:
        replay.widen((value,))  # a loss may write into it
    return value


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _through(name: str) -> Any:
    def call(self: StandIn, *args: Any, **kwargs: Any) -> Any:
        _refuse(self)
        return getattr(_thing(self), name)(*args, **kwargs)

    return call


def _read(name: str) -> Any:
    def read(self: Silent, *args: Any) -> Any:
        return _shown(getattr(_thing(self), name)(*args))

    return read


def _told(name: str) -> Any:
    through = _through(name)

    def tell(self: Silent, *args: Any, **kwargs: Any) -> Any:
        if current() is None:
            return through(self, *args, **kwargs)
        return self if name == "__enter__" else None

    return tell


for _name in ("getitem", "len", "contains", "iter"):
    setattr(StandIn, f"__{_name}__", _through(f"__{_name}__"))
    setattr(Silent, f"__{_name}__", _read(f"__{_name}__"))
for _name in ("next", "call", "enter", "exit", "setitem", "delitem"):
    setattr(StandIn, f"__{_name}__", _through(f"__{_name}__"))
    setattr(Silent, f"__{_name}__", _told(f"__{_name}__"))
