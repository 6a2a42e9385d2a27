"""Tables: the parameters and buffers of modules, exchanged for the thread that evaluates them.

For as long as an evaluation lasts a table of a module shows its entries to everybody else, and the
exchanged ones to the replay that it belongs to, whichever of its threads asks. An exchanged entry
may be made in the moment in which it is read, so that it lives no longer than its reader.
"""

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from eqtoolbox.replay.thread.scope import place

NAMES = ("_parameters", "_buffers")
_lock = threading.Lock()


class Later(ABC):
    """An entry that is made whenever it is read."""

    @abstractmethod
    def made(self) -> Tensor:
        """The entry itself."""


class Asked(dict[str, Any]):
    """Entries of which some are made as they are read, one by one, whoever reads them."""

    def __getitem__(self, key: str) -> Any:
        return _made(super().__getitem__(key))

    def __iter__(self) -> Iterator[str]:  # `dict(...)` would not ask, were this dict's own
        return super().__iter__()

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(self.copy(), memo)

    def get(self, key: str, default: Any = None) -> Any:
        return _made(super().get(key, default))

    def setdefault(self, key: str, default: Any = None) -> Any:
        return _made(super().setdefault(key, default))

    def pop(self, *given: Any) -> Any:
        return _made(super().pop(*given))

    def items(self) -> Any:
        return ItemsView(self)

    def values(self) -> Any:
        return ValuesView(self)

    def copy(self) -> dict[str, Any]:
        return {key: self[key] for key in self}


def _made(entry: Any) -> Any:
    return entry.made() if isinstance(entry, Later) else entry


class ThreadTable(dict[str, Any]):
    """The entries of `live`, or those that this thread has exchanged for them.

    Itself it holds the live ones: for readers that ask no method.
    """

    __slots__ = ("_others", "live")

    def __init__(self, live: dict[str, Any]) -> None:
        super().__init__(live)
        self.live = live
        self._others: dict[Any, list[dict[str, Any]]] = {}

    def begin(self, entries: dict[str, Any]) -> None:
        """Show these here from now on."""
        self._others.setdefault(place(), []).append(entries)

    def end(self) -> bool:
        """Show those of before; whether they are the live ones everywhere."""
        if len(self._others[place()]) == 1:
            del self._others[place()]
        else:
            self._others[place()].pop()
        return not self._others

    def here(self) -> dict[str, Any]:
        """What this thread sees."""
        mine = self._others.get(place())
        return self.live if mine is None else mine[-1]

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(self.here(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self.live), (self.here(),)


def _through(name: str) -> Any:
    def call(self: ThreadTable, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.here(), name)(*args, **kwargs)

    return call


for _name in (
    "contains", "delitem", "eq", "getitem", "ior", "iter", "len", "ne", "or", "repr", "reversed",
    "ror", "setitem",
):  # fmt: skip
    setattr(ThreadTable, f"__{_name}__", _through(f"__{_name}__"))
for _name in (
    "clear", "copy", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values",
):  # fmt: skip
    setattr(ThreadTable, _name, _through(_name))


class Exchanged:
    """Other parameters and buffers of a model, to be found in it as often as `here` is entered.

    Tensors that the model holds at several places are exchanged at all of them.

    Args:
        model: that holds them.
        named: tensors by the names of those in whose place they are.
        whole: buffers that are not among them are not there: an evaluation has yet to make them.
    """

    def __init__(self, model: nn.Module, named: Mapping[str, Tensor], whole: bool = False) -> None:
        tables = [
            (prefix, module, name, live(getattr(module, name)))
            for prefix, module in model.named_modules()
            for name in NAMES
        ]
        other = {
            id(t): named[f"{prefix}.{key}" if prefix else key]
            for prefix, _, _, table in tables
            for key, t in table.items()
            if t is not None and (f"{prefix}.{key}" if prefix else key) in named
        }
        self._rows = [
            (
                module,
                name,
                _entries(
                    (key, other.get(id(t), t))
                    for key, t in table.items()
                    if not (whole and name == "_buffers" and t is not None and id(t) not in other)
                ),
            )
            for _, module, name, table in tables
            if len(table)
        ]

    @contextmanager
    def here(self) -> Iterator[None]:
        """Scope in which this thread finds them."""
        shown = []
        try:
            for module, name, entries in self._rows:
                shown.append((module, name, _show(module, name, entries)))
            yield
        finally:
            for module, name, before in reversed(shown):
                _put_back(module, name, before)


def _entries(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    later = any(isinstance(entry, Later) for entry in entries.values())
    return Asked(entries) if later else entries


def live(table: Any) -> Any:
    """The table of a module that everybody sees."""
    return table.live if type(table) is ThreadTable else table


def settled(table: Any) -> Any:
    """A table as this thread sees it; the live one where entries would have to be made."""
    there = type(table) is ThreadTable and isinstance(table.here(), Asked)
    return table.live if there else table


def settled_parameters(model: nn.Module) -> dict[str, Tensor]:
    """`dict(model.named_parameters())`, for which nothing has to be made."""
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for key, t in settled(module._parameters).items():
            if t is not None and id(t) not in seen:
                seen.add(id(t))
                named[f"{prefix}.{key}" if prefix else key] = t
    return named


def _show(module: nn.Module, name: str, entries: dict[str, Any]) -> Any:
    """Exchange the entries of one table; returns what there is to put back."""
    with _lock:
        table = vars(module).get(name)
        if not isinstance(table, dict):  # TorchScript's own, in C++ and for all threads
            table = getattr(module, name)
            before = dict(table.items())
            for key, tensor in entries.items():
                table[key] = tensor
            return before
        if type(table) is not ThreadTable:
            table = vars(module)[name] = ThreadTable(table)
        table.begin(entries)
        return table


def _put_back(module: nn.Module, name: str, before: Any) -> None:
    with _lock:
        if type(before) is ThreadTable:
            if before.end() and vars(module).get(name) is before:
                vars(module)[name] = live(before)
            return
        for key, tensor in before.items():
            getattr(module, name)[key] = tensor
