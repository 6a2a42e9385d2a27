"""Names: what names of a namespace are bound to, or attributes that an object has in slots."""

from collections.abc import Iterable
from operator import is_
from typing import Any

from eqtoolbox.replay.reach.attributes import in_slot, slot
from eqtoolbox.replay.reach.slots import GONE, Exchange, Slot, exchanged


class Names(Slot):
    """Some names of a namespace."""

    __slots__ = ("held",)

    def __init__(self, owner: Any, path: Any, names: Iterable[str]) -> None:
        self.owner, self.path = owner, path
        self.held = {name: self._get(name) for name in names}

    def again(self) -> "Names":
        return type(self)(self.owner, self.path, self.held)

    def key(self) -> tuple[Any, ...]:
        return (*super().key(), *self.held)

    def marks(self) -> set[Any]:
        return {(id(self.owner), name) for name in self.held}

    def divided(self, theirs: set[Any]) -> tuple[list[Slot], list[Slot]]:
        common = {name for name in self.held if (id(self.owner), name) in theirs}
        if id(self.owner) in theirs:  # all of them
            common = {*self.held}
        parts = [type(self)(self.owner, self.path, ()) for _ in range(2)]
        for name, value in self.held.items():
            parts[name in common].held[name] = value
        mine, other = ([part] if part.held else [] for part in parts)
        return [*mine], [*other]

    def holds(self, things: Exchange) -> bool:
        return any(id(value) in things for value in self.held.values())

    def moved(self, exchange: Exchange) -> bool:
        now = map(self._get, self.held)
        return not all(map(is_, now, exchanged(self.held, exchange)))

    def put_back(self, exchange: Exchange) -> None:
        for name, value in self.held.items():
            wanted = exchange.get(id(value), value)
            if self._get(name) is not wanted:
                self._delete(name) if wanted is GONE else self._set(name, wanted)

    def _get(self, name: str) -> Any:
        return self.owner.get(name, GONE)

    def _set(self, name: str, value: Any) -> None:
        self.owner[name] = value

    def _delete(self, name: str) -> None:
        del self.owner[name]


class Named(Names):
    """Attributes of an object that are not in its dict: those that a class has in slots."""

    __slots__ = ()

    def _get(self, name: str) -> Any:
        if self._slot(name) is not None:
            return in_slot(self.owner, name, GONE)
        try:
            return object.__getattribute__(self.owner, name)
        except AttributeError:
            return GONE

    def _set(self, name: str, value: Any) -> None:
        found = self._slot(name)
        if found is None:
            object.__setattr__(self.owner, name, value)
        else:
            found.__set__(self.owner, value)

    def _delete(self, name: str) -> None:
        found = self._slot(name)
        if found is None:
            object.__delattr__(self.owner, name)
        else:
            found.__delete__(self.owner)

    def _slot(self, name: str) -> Any:
        kind: Any = type(self.owner)
        return slot(kind, name)


class Definition(Named):
    """What a function is made of, of which a program has many."""

    __slots__ = ()
    PARTS = ("__code__", "__defaults__", "__kwdefaults__")

    def __init__(self, owner: Any, path: Any, names: Iterable[str] = PARTS) -> None:
        super().__init__(owner, path, names)

    def moved(self, exchange: Exchange) -> bool:
        if exchange or len(self.held) < len(self.PARTS):
            return super().moved(exchange)
        own, (code, defaults, named) = self.owner, self.held.values()
        return not (
            own.__code__ is code and own.__defaults__ is defaults and own.__kwdefaults__ is named
        )


class Namespace(Names):
    """All names of a namespace, those that it has not yet, too, but for those that others use."""

    __slots__ = ("_left",)

    def __init__(self, owner: dict[str, Any], path: Any, left: Iterable[str] = ()) -> None:
        self._left = frozenset(left)
        super().__init__(owner, path, [name for name in owner if name not in self._left])

    def again(self) -> "Namespace":
        return type(self)(self.owner, self.path, self._left)

    def marks(self) -> set[Any]:
        return {id(self.owner), *super().marks()}

    def divided(self, theirs: set[Any]) -> tuple[list[Slot], list[Slot]]:
        if id(self.owner) in theirs:
            return [], [self]
        known = {mark[1] for mark in theirs if type(mark) is tuple and mark[0] == id(self.owner)}
        if not known:
            return [self], []
        other = Names(self.owner, self.path, ())
        mine = Namespace(self.owner, self.path, known | self._left)
        mine.held = {name: value for name, value in self.held.items() if name not in known}
        other.held = {name: self.held[name] for name in known & self.held.keys()}
        return [mine], ([other] if other.held else [])

    def moved(self, exchange: Exchange) -> bool:
        return bool(self._new()) or super().moved(exchange)

    def put_back(self, exchange: Exchange) -> None:
        super().put_back(exchange)
        for name in self._new():
            del self.owner[name]

    def _new(self) -> set[str]:
        return {*self.owner} - self.held.keys() - self._left
