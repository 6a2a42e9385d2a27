"""Concealed: a hook of ours on a user's module, unseen by who copies, saves or scripts the module.

Calls of a module go through `items()` of its tables of hooks, TorchScript reads `values()`,
`copy` and `pickle` ask the table how to rebuild it. The latter are answered without our hooks by
attributes of the table itself, which stays the same object: handles of other hooks point at it.
"""

import copy
import weakref
from collections import OrderedDict
from typing import Any

from torch.utils.hooks import RemovableHandle

Table = OrderedDict[int, Any]


class Concealed:
    """A registered hook, concealed until it is removed.

    Args:
        handle: as registering it on a module gave it.
    """

    def __init__(self, handle: RemovableHandle) -> None:
        self._handle = handle
        for table in self._tables():
            cover = _Cover.on(table) or _Cover(table)
            cover.keys.add(handle.id)

    def remove(self) -> None:
        """Take the hook off."""
        for table in self._tables():
            cover = _Cover.on(table)
            if cover is not None:
                cover.keys.discard(self._handle.id)
                if not cover.keys:
                    cover.lift()
        self._handle.remove()

    def _tables(self) -> list[Table]:
        references = (self._handle.hooks_dict_ref, *self._handle.extra_dict_ref)
        return [table for table in (r() for r in references) if table is not None]


class _Cover:
    """Answers for a table of hooks as if those under `keys` were not in it."""

    def __init__(self, table: Table) -> None:
        self.keys: set[int] = set()
        self._table = weakref.ref(table)
        table.__dict__.update(
            values=self.values, __deepcopy__=self.deepcopy, __reduce_ex__=self.reduce
        )

    @staticmethod
    def on(table: Table) -> "_Cover | None":
        """The cover of a table, if it has one."""
        owner = getattr(table.__dict__.get("values"), "__self__", None)
        return owner if isinstance(owner, _Cover) else None

    def lift(self) -> None:
        """Leave the table as it was found."""
        for name in ("values", "__deepcopy__", "__reduce_ex__"):
            del self._whole.__dict__[name]

    def values(self) -> Any:
        return self._rest().values()

    def deepcopy(self, memo: dict[int, Any]) -> Table:
        return copy.deepcopy(self._rest(), memo)

    def reduce(self, protocol: Any) -> Any:
        return self._rest().__reduce_ex__(protocol)

    @property
    def _whole(self) -> Table:
        table = self._table()
        assert table is not None  # it is the table that was asked
        return table

    def _rest(self) -> Table:
        return OrderedDict((k, hook) for k, hook in self._whole.items() if k not in self.keys)
