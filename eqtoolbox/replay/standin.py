"""A stand-in: what a replay finds in the place of a thing that could not be put back once used.

Generators, files that are written, queues, connections and trackers go on by themselves: they are
refused by name at the first touch, before they have moved.
"""

from typing import Any

from eqtoolbox.replay.scope import current


class StandIn:
    """Refuses whatever a replay asks of it; to other threads it is the thing itself."""

    __slots__ = ("_eqtoolbox_thing", "_eqtoolbox_why")

    def __init__(self, thing: Any, why: str) -> None:
        object.__setattr__(self, "_eqtoolbox_thing", thing)
        object.__setattr__(self, "_eqtoolbox_why", why)

    def __getattribute__(self, name: str) -> Any:
        thing = object.__getattribute__(self, "_eqtoolbox_thing")
        if name == "__class__":
            return type(thing)
        _refuse(self)
        return getattr(thing, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _refuse(self)
        setattr(object.__getattribute__(self, "_eqtoolbox_thing"), name, value)


def _refuse(one: StandIn) -> None:
    replay = current()
    if replay is not None:
        replay.refuse(object.__getattribute__(one, "_eqtoolbox_why"))


def _through(name: str) -> Any:
    def call(self: StandIn, *args: Any, **kwargs: Any) -> Any:
        if type(self) is Silent and current() is not None:
            return self if name == "__enter__" else None
        _refuse(self)
        return getattr(object.__getattribute__(self, "_eqtoolbox_thing"), name)(*args, **kwargs)

    return call


for _name in ("next", "iter", "call", "enter", "exit", "len", "getitem", "setitem", "contains"):
    setattr(StandIn, f"__{_name}__", _through(f"__{_name}__"))


class Silent(StandIn):
    """A tracker of experiments that takes whatever a replay tells it and does nothing."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if current() is None or name == "__class__":
            return super().__getattribute__(name)
        return _nothing

    def __setattr__(self, name: str, value: Any) -> None:
        if current() is None:
            super().__setattr__(name, value)


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
