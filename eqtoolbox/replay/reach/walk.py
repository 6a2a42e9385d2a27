"""A walk: the bookkeeping of what has been met on the way from a model and its loss."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from eqtoolbox.replay.reach import kinds, slots
from eqtoolbox.replay.reach.attributes import attributes_of
from eqtoolbox.replay.reach.contents import Contents, gradient
from eqtoolbox.replay.reach.kinds import ATOMS, slotted
from eqtoolbox.replay.reach.names import Named
from eqtoolbox.replay.reach.slots import Slot
from eqtoolbox.replay.thread.scope import LeavesTrace
from eqtoolbox.replay.thread.tables import settled_parameters


class Walk:
    """What is met, kind by kind; `read` says what one thing holds."""

    def __init__(self, roots: Iterable[Any], hosts: Iterable[nn.Module] = ()) -> None:
        hosts = [*hosts]
        self.hosts = {id(m) for host in hosts for m in host.modules()}
        self.exchanged = {id(p) for host in hosts for p in settled_parameters(host).values()}
        self.slots: list[Slot] = []
        self.tensors: list[tuple[Any, Tensor]] = []
        self.modules: list[nn.Module] = []
        self.holders: list[tuple[Any, tuple[Any, ...]]] = []  # that cannot be written, and what of
        self.loose: list[tuple[Any, Any]] = []  # (thing, path) that cannot be put back
        self.seen: dict[int, Any] = {}
        self.marks: set[Any] = set()  # of what has been read in part, or is no thing of its own
        self._waiting: list[tuple[Any, Any]] = [(root, (None, word(root))) for root in roots]

    def run(self) -> None:
        """Read everything that waits.

        Raises:
            LeavesTrace: there is more than can be kept; says where.
        """
        with _no_collection():
            self._run()

    def _run(self) -> None:
        waiting, seen = self._waiting, self.seen
        while waiting:
            thing, path = waiting.pop()
            if id(thing) in seen:
                continue
            seen[id(thing)] = thing
            if len(seen) > kinds.MANY:
                raise LeavesTrace(
                    f"the loss can reach more than {kinds.MANY:,} objects, the last in "
                    f"{said(path)}: too many to be kept for a replay; let it reach what it needs "
                    "only"
                )
            try:
                self.read(thing, path)
            except LeavesTrace:
                raise
            except Exception as error:  # a metaclass answers for its class
                raise LeavesTrace(
                    f"the loss can reach {said(path)}, which cannot be looked into "
                    f"({type(error).__name__}: {error!s:.80}), so that probes that evaluate the "
                    "loss are switched off; let it reach what it needs only"
                ) from error

    def read(self, thing: Any, path: Any) -> None:
        """What one thing holds, into the lists."""
        raise NotImplementedError

    def look(self, value: Any, path: Any) -> None:
        """Walk on to a value later."""
        if type(value) not in ATOMS:
            self._waiting.append((value, path))

    def look_all(self, things: Iterable[Any], path: Any) -> None:
        """Walk on to the items of a list."""
        found = {*map(type, things)}
        if found == {tuple}:
            found = {*map(type, chain.from_iterable(things))}
        if not found <= ATOMS:
            for k, value in enumerate(things):
                if type(value) not in ATOMS:
                    self._waiting.append((value, (path, (k,))))

    def look_named(self, pairs: Iterable[tuple[str, Any]], path: Any) -> None:
        """Walk on to attributes."""
        for name, value in pairs:
            if type(value) not in ATOMS:
                self._waiting.append((value, (path, name)))

    def held(self, holder: Any, parts: Iterable[Any], path: Any) -> None:
        """A thing that cannot be written holds these: if one needs a stand-in, so does it."""
        kept = tuple(part for part in parts if type(part) not in ATOMS)
        if kept:
            self.holders.append((holder, kept))
            for part in kept:
                self._waiting.append((part, path))

    def attributes(self, thing: Any, path: Any, deep: bool = True) -> None:
        """The attributes of an object, and what is in them."""
        kind: Any = type(thing)
        own = attributes_of(thing)
        if own is not None:
            entries = slots.Entries(own, path)
            self.slots.append(entries)
            if deep:
                self.look_named(entries.held.items(), path)
        names = slotted(kind)
        if names:
            slot = Named(thing, path, names)
            self.slots.append(slot)
            self.look_named(slot.held.items(), path)

    def keep(self, tensor: Tensor, path: Any) -> None:
        """Keep a tensor by value."""
        self.slots.append(Contents(tensor, path))

    def gradient(self, tensor: Tensor) -> Tensor | None:
        """What has been summed up in its `.grad`."""
        return gradient(tensor)

    def first(self, mark: Any) -> bool:
        """Whether this has not been read before."""
        new = mark not in self.marks
        self.marks.add(mark)
        return new


@contextmanager
def _no_collection() -> Iterator[None]:
    """Scope in which Python does not look for garbage: all that a walk makes is kept."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def said(path: Any) -> str:
    """A path in words: `Net.layers.0.history['mean']`."""
    words: list[str] = []
    while path is not None:
        path, word = path
        words.append(f"[{word[0]!r:.40}]" if isinstance(word, tuple) else f".{word}")
    return "".join(reversed(words)).removeprefix(".")


def word(root: Any) -> str:
    """What a thing that is not reached from another is called."""
    has_one = issubclass(type(root), FunctionType | MethodType | type)
    named = root if has_one else type(root)
    return str(named.__qualname__).replace("<locals>.", "")


def space_of(module: ModuleType) -> dict[str, Any]:
    """The names of a module."""
    return ModuleType.__getattribute__(module, "__dict__")  # type: ignore[no-any-return]
