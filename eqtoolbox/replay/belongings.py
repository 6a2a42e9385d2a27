"""Belongings: what a model and its loss could reach at one moment, and how it was."""

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn

from eqtoolbox.replay.calls import hooks_of_all_modules
from eqtoolbox.replay.kinds import ITERATORS, tracks
from eqtoolbox.replay.reach import Reach, said
from eqtoolbox.replay.slots import Slot
from eqtoolbox.replay.standin import Silent, StandIn


class Belongings:
    """Everything mutable in reach of `roots` (see `eqtoolbox.replay.reach`), as it is now.

    Args:
        roots: a model, its loss function, a criterion.
        hosts: modules whose parameters and buffers are exchanged when they are evaluated.

    Raises:
        LeavesTrace: there is more than can be kept.
    """

    def __init__(self, roots: Iterable[Any], hosts: Iterable[nn.Module] = ()) -> None:
        reach = Reach((*roots, *hooks_of_all_modules()), hosts)
        self.slots: list[Slot] = reach.slots
        self.tensors = reach.tensors
        self.modules = reach.modules
        self.tuples = reach.tuples
        self.seen = reach.seen  # keeps all of it alive, so that no id is used again
        self._loose = [
            (thing, path, copy.copy(thing) if type(thing) in ITERATORS else None)
            for thing, path in reach.loose
        ]

    def add(self, other: "Belongings") -> None:
        """Take in what the other reaches besides, as it is now."""
        mine = {id(slot.owner) for slot in self.slots}
        self.slots += [slot.again() for slot in other.slots if id(slot.owner) not in mine]
        known = {id(t) for _, t in self.tensors}
        self.tensors += [(path, t) for path, t in other.tensors if id(t) not in known]
        met = {id(m) for m in self.modules}
        self.modules += [m for m in other.modules if id(m) not in met]
        self.tuples += other.tuples
        loose = {id(thing) for thing, _, _ in self._loose}
        self._loose += [row for row in other._loose if id(row[0]) not in loose]
        self.seen.update(other.seen)

    def exchange(self) -> dict[int, Any]:
        """New stand-ins for what cannot be put back; iterators over sequences as copies."""
        made: dict[int, Any] = {
            id(thing): _stand_in(thing, path) if kept is None else copy.copy(kept)
            for thing, path, kept in self._loose
        }
        for whole in reversed(self.tuples) if made else ():
            if any(id(part) in made for part in whole):
                parts = [made.get(id(part), part) for part in whole]
                named = hasattr(whole, "_make")
                made[id(whole)] = whole._make(parts) if named else tuple(parts)
        return made

    def restore(self, exchange: dict[int, Any]) -> list[Slot]:
        """Make everything what it was; returns what had moved."""
        return [slot for slot in self.slots if slot.restore(exchange)]


def _stand_in(thing: Any, path: Any) -> StandIn:
    return Silent(thing, "") if tracks(type(thing)) else StandIn(thing, _why(thing, path))


def _why(thing: Any, path: Any) -> str:
    return (
        f"the loss uses {said(path)}, a {type(thing).__name__} that cannot be put back once it has "
        "moved: evaluating the loss again would change the training, so that probes that do are "
        "switched off; use it outside the loss and hand over what comes out"
    )
