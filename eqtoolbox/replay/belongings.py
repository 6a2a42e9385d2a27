"""Belongings: what a model and its loss could reach at one moment, and how it was."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from eqtoolbox.replay.calls import hooks_of_all_modules
from eqtoolbox.replay.reach.exchange import copied, remade, stand_in
from eqtoolbox.replay.reach.reach import Reach
from eqtoolbox.replay.reach.slots import Slot


class Belongings:
    """Everything mutable in reach of `roots` (see `eqtoolbox.replay.reach.reach`), as it is now.

    Args:
        roots: a model, its loss function, a criterion.
        hosts: modules whose parameters and buffers are exchanged when they are evaluated.

    Raises:
        LeavesTrace: there is more than can be kept.
    """

    def __init__(self, roots: Iterable[Any], hosts: Iterable[nn.Module] = ()) -> None:
        reach = Reach((*roots, *hooks_of_all_modules()), hosts)
        self.slots: list[Slot] = reach.slots
        self.common: list[Slot] = []  # that other threads can reach, too
        self.tensors = reach.tensors
        self.modules = reach.modules
        self.holders = reach.holders
        self.seen = reach.seen  # keeps all of it alive, so that no id is used again
        self._loose = [(thing, path, copied(thing)) for thing, path in reach.loose]
        self._holding: tuple[set[int], set[int]] | None = None  # things, slots that hold some

    def add(self, other: "Belongings") -> None:
        """Take in what the other reaches besides, as it is now."""
        self._holding = None
        mine = {mark for slot in (*self.slots, *self.common) for mark in slot.marks()}
        new = [slot.divided(mine)[0] for slot in (*other.slots, *other.common)]
        self.slots += [slot.again() for parts in new for slot in parts]
        known = {id(t) for _, t in self.tensors}
        self.tensors += [(path, t) for path, t in other.tensors if id(t) not in known]
        met = {id(m) for m in self.modules}
        self.modules += [m for m in other.modules if id(m) not in met]
        self.holders += other.holders
        loose = {id(thing) for thing, _, _ in self._loose}
        self._loose += [row for row in other._loose if id(row[0]) not in loose]
        self.seen.update(other.seen)

    def exchange(self) -> dict[int, Any]:
        """New stand-ins for what cannot be put back, copies of what can be copied instead."""
        made: dict[int, Any] = {}
        for thing, path, kept in self._loose:
            made[id(thing)] = stand_in(thing, path) if kept is None else copied(kept)
        if made:
            remade(self.holders, made)
        return made

    def leave(self, theirs: set[Any]) -> None:
        """Never write what other threads can reach, given by its marks."""
        self._holding = None
        whole, self.slots, self.common = [*self.slots, *self.common], [], []
        for slot in whole:
            mine, other = slot.divided(theirs)
            self.slots += mine
            self.common += other

    def restore(self, exchange: dict[int, Any]) -> list[Slot]:
        """Make everything what it was; returns what had moved."""
        if not exchange:
            return [slot for slot in self.slots if slot.restore(exchange)]
        if self._holding is None or self._holding[0] != exchange.keys():
            self._holding = {*exchange}, {id(s) for s in self.slots if s.holds(exchange)}
        _, holding = self._holding
        return [s for s in self.slots if s.restore(exchange if id(s) in holding else {})]


def used_by(loss_fn: Any, batch: Any) -> tuple[Any, ...]:
    """The loss function, and what its batch holds besides tensors."""
    kept = (Tensor, nn.Module, str, int, float, bool, bytes, type(None))
    return (loss_fn, *(x for x in tree_leaves(batch) if not isinstance(x, kept)))
