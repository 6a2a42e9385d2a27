"""A slot: one mutable container of a program, what it held, and how to put it back.

Containers are kept by the identity of what they hold: what is in them has slots of its own.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from functools import partial
from operator import is_
from types import CellType
from typing import Any

GONE = object()  # in the place of what was not there
MARK = "_compiled_call_impl"  # where `eqtoolbox.replay.calls` answers for a module
EXCHANGED = (MARK, "_parameters", "_buffers")  # the tables by `eqtoolbox.replay.thread.tables`
Exchange = Mapping[int, Any]  # stand-ins by the id of what they stand for


class Slot(ABC):
    """What one object held. `path` says how the user's code reaches it."""

    __slots__ = ("owner", "path")
    owner: Any
    path: Any

    def __init__(self, owner: Any, path: Any) -> None:
        self.owner, self.path = owner, path

    def again(self) -> "Slot":
        """What the same thing holds now."""
        return type(self)(self.owner, self.path)

    def key(self) -> tuple[Any, ...]:
        """What it looks at: slots of one key hold the same at one time."""
        return type(self), id(self.owner)

    def marks(self) -> set[Any]:
        """What others may have a hold of."""
        return {id(self.owner)}

    def divided(self, theirs: set[Any]) -> "tuple[list[Slot], list[Slot]]":
        """What of it others have no hold of, and what they have."""
        return ([], [self]) if self.marks() & theirs else ([self], [])

    def restore(self, exchange: Exchange) -> bool:
        """Put it back where it has moved, and tell so."""
        moved = self.moved(exchange)
        if moved:
            self.put_back(exchange)
        return moved

    def holds(self, things: Exchange) -> bool:
        """Whether any of these, given by their ids, may be in what it held."""
        return True

    @abstractmethod
    def moved(self, exchange: Exchange) -> bool:
        """Whether it holds something else now; stand-ins count as what they stand for."""

    @abstractmethod
    def put_back(self, exchange: Exchange) -> None:
        """Make it hold what it held, with the stand-ins of `exchange`."""


class Entries(Slot):
    """The entries of a dict, or the attributes of an object, in order."""

    __slots__ = ("_kind", "held")

    def __init__(self, owner: dict[Any, Any], path: Any) -> None:
        self.owner, self.path = owner, path
        self._kind = OrderedDict if isinstance(owner, OrderedDict) else dict  # not a Counter's own
        self.held = dict(self._kind.items(owner))

    def holds(self, things: Exchange) -> bool:
        return any(id(x) in things for pair in self.held.items() for x in pair)

    def moved(self, exchange: Exchange) -> bool:
        now, held = self._kind.values(self.owner), self.held
        keys = _keys(held, exchange)
        if len(now) != len(held) or not all(map(is_, self._kind.keys(self.owner), keys)):
            return True
        return not all(map(is_, now, exchanged(held, exchange)))

    def put_back(self, exchange: Exchange) -> None:
        owner, kind = self.owner, self._kind
        pairs = zip(_keys(self.held, exchange), exchanged(self.held, exchange), strict=True)
        wanted = dict(pairs)
        for key in [key for key in kind.keys(owner) if key not in wanted]:
            kind.__delitem__(owner, key)
        if not all(map(is_, kind.keys(owner), wanted)):  # else never empty: others may read
            kind.clear(owner)
        kind.update(owner, wanted)


class Attributes(Entries):
    """The attributes of a module, but for those that replays exchange in it, of any thread."""

    __slots__ = ()

    def moved(self, exchange: Exchange) -> bool:
        now, held = self.owner, self.held
        same = len(now) - (MARK in now) == len(held) - (MARK in held) and all(map(is_, now, held))
        if same and all(map(is_, now.values(), exchanged(held, exchange))):
            return False
        now, held = _but_exchanged(now), _but_exchanged(held)
        same = len(now) == len(held) and all(map(is_, now, held))
        return not same or not all(map(is_, now.values(), exchanged(held, exchange)))

    def put_back(self, exchange: Exchange) -> None:
        answer = {key: self.owner[key] for key in EXCHANGED if key in self.owner}
        super().put_back(exchange)
        self.owner.pop(MARK, None)
        self.owner.update(answer)


def _but_exchanged(own: dict[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in own.items() if key not in EXCHANGED}


def _keys(held: dict[Any, Any], exchange: Exchange) -> Iterable[Any]:
    return (exchange.get(id(k), k) for k in held) if exchange else held


def exchanged(held: dict[Any, Any], exchange: Exchange) -> Iterable[Any]:
    """What a dict held, with what stands in for it."""
    values = held.values()
    return (exchange.get(id(v), v) for v in values) if exchange else values


class Items(Slot):
    """The items of a list, a deque or a set."""

    __slots__ = ("_kind", "held")

    def __init__(self, owner: Any, path: Any) -> None:
        self.owner, self.path = owner, path
        self._kind: Any = next(kind for kind in (list, deque, set) if isinstance(owner, kind))
        self.held = [*self._kind.__iter__(owner)]

    def holds(self, things: Exchange) -> bool:
        return any(id(x) in things for x in self.held)

    def _wanted(self, exchange: Exchange) -> list[Any]:
        return [exchange.get(id(x), x) for x in self.held] if exchange else self.held

    def moved(self, exchange: Exchange) -> bool:
        now, wanted = self._kind.__iter__(self.owner), self._wanted(exchange)
        if self._kind.__len__(self.owner) != len(wanted):
            return True
        if self._kind is set:  # its order says nothing
            return {*map(id, now)} != {*map(id, wanted)}
        return not all(map(is_, now, wanted))

    def put_back(self, exchange: Exchange) -> None:
        wanted = self._wanted(exchange)
        self._kind.clear(self.owner)
        more = self._kind.update if self._kind is set else self._kind.extend
        more(self.owner, wanted)


class Class(Slot):
    """The attributes of a class."""

    __slots__ = ("held",)

    def __init__(self, owner: type, path: Any) -> None:
        self.owner, self.path, self.held = owner, path, dict(vars(owner))

    def holds(self, things: Exchange) -> bool:
        return any(id(x) in things for x in self.held.values())

    def moved(self, exchange: Exchange) -> bool:
        now, held = vars(self.owner), self.held
        if len(now) != len(held) or not all(map(is_, now, held)):
            return True
        return not all(map(is_, now.values(), exchanged(held, exchange)))

    def put_back(self, exchange: Exchange) -> None:
        now = dict(vars(self.owner))
        for name in now.keys() - self.held.keys():
            type.__delattr__(self.owner, name)
        for name, held in self.held.items():
            value = exchange.get(id(held), held)
            if now.get(name, GONE) is not value:
                type.__setattr__(self.owner, name, value)


class Given(Slot):
    """What a partial function was given."""

    __slots__ = ("held",)

    def __init__(self, owner: partial[Any], path: Any) -> None:
        self.owner, self.path, self.held = owner, path, owner.args

    def moved(self, exchange: Exchange) -> bool:
        return self.owner.args is not exchange.get(id(self.held), self.held)

    def put_back(self, exchange: Exchange) -> None:
        given, owner = exchange.get(id(self.held), self.held), self.owner
        owner.__setstate__((owner.func, given, owner.keywords, vars(owner)))


class Hooks(Slot):
    """The tables of hooks of a module."""

    __slots__ = ("_sizes", "_tables", "held")
    CALLED = ("_forward_pre_hooks", "_forward_hooks")
    NAMES = (
        *CALLED,
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
        return any(t != held for t, held in zip(self._tables, self.held or (), strict=False))

    def put_back(self, exchange: Exchange) -> None:
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

    def put_back(self, exchange: Exchange) -> None:
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
