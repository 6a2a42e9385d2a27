"""What the probes of one run find out once about its model, and share: owned by the monitor."""

import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

from eqtoolbox.replay.heap import give_back
from eqtoolbox.replay.identity import digest
from eqtoolbox.world.world import World

T = TypeVar("T")
KEPT = 4  # findings of one kind: of losses that take turns, of training and evaluation mode


class Shelf(Protocol):
    """Where plain values are kept under a name, and looked for; whoever put them there."""

    def keep(self, name: str, found: Mapping[str, Any]) -> None: ...

    def kept(self, name: str) -> Mapping[str, Any]: ...


class Shared:
    """Findings of one run, each made once as long as what it is about stays the same.

    Probes hold options only: what they find out lives here, so that a probe given to two runs
    finds out about each by itself. A finding that has a `state_dict()` of plain values is
    checkpointed; others are made anew where a run goes on. Some lie on the shelf as well, such as
    the run's directory, and are found there where no checkpoint was loaded.

    Args:
        shelf: where such findings lie; None: nowhere.
        world: whose ranks find out together.

    Example:
        >>> shared = Shared()
        >>> shared.get("square", 3, lambda: 9)
        9
        >>> shared.get("square", 3, lambda: 1 / 0)
        9
    """

    def __init__(self, shelf: Shelf | None = None, world: World | None = None) -> None:
        self._shelf, self._world = shelf, world or World()
        self.seconds = 0.0  # that making took so far
        self._found: dict[str, dict[Hashable, Any]] = {}
        self._saved: dict[str, Any] = {}  # by digest, of the run that goes on
        self._making = 0

    def get(
        self,
        kind: str,
        about: Hashable,
        make: Callable[[], T],
        restore: Callable[[Any], T] | None = None,
        shelved: bool = False,
    ) -> T:
        """The finding of this kind about something, made if there is none yet.

        Args:
            kind: what was asked, such as "self_test".
            about: what it depends on; equal for two steps at which the finding is the same.
            make: finds it out. What it raises is raised, and nothing is kept.
            restore: makes the finding of what its `state_dict()` was in an earlier run.
            shelved: whether it lies on the shelf, too, as JSON can hold it.
        """
        found = self._found.setdefault(kind, {})
        known = about in found
        if not self._missed_by_any(kind, not known):
            found[about] = found.pop(about)  # the last one used comes last
            return found[about]  # type: ignore[no-any-return]
        saved = self._saved.pop(digest((kind, about)), None) if self._saved else None
        if saved is None and shelved:
            saved = self._on_shelf(kind).get(digest(about))
        if self._missed_by_any(kind, saved is None):
            saved = None
        again = partial(restore, saved) if restore is not None and saved is not None else make
        found[about] = made = self._timed(again)
        if shelved:
            self._put_on_shelf(kind, about, made)
        if len(found) > KEPT:
            del found[next(iter(found))]
        return made

    def known(self, kind: str, about: Hashable) -> Any:
        """The finding of this kind about something, if it was asked for before; else None."""
        return self._found.get(kind, {}).get(about)

    def _missed_by_any(self, kind: str, missing: bool) -> bool:
        """Whether a rank has not what is asked for, where all ask: they make it together."""
        if not self._world.inside:
            return missing
        return bool(self._world.most(f"finding of {kind}", [float(missing)])[0])

    def newest(self, kind: str) -> Any:
        """The finding of this kind that was asked for last; None where there is none."""
        found = self._found.get(kind)
        return found[next(reversed(found))] if found else None

    def state_dict(self) -> dict[str, Any]:
        """Findings that a resumed run need not make again, those not asked for yet included."""
        return self._saved | {
            digest((kind, about)): made.state_dict()
            for kind, found in self._found.items()
            for about, made in found.items()
            if hasattr(made, "state_dict")
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what an earlier run found, where it is about the same."""
        self._found.clear()
        self._saved = dict(state)

    def _on_shelf(self, kind: str) -> Mapping[str, Any]:
        return self._shelf.kept(kind) if self._shelf is not None else {}

    def _put_on_shelf(self, kind: str, about: Hashable, made: Any) -> None:
        """The last findings of a kind; what else lies there goes."""
        if self._shelf is not None and hasattr(made, "state_dict"):
            others = [(k, v) for k, v in self._on_shelf(kind).items() if k != digest(about)]
            self._shelf.keep(kind, dict([*others[1 - KEPT :], (digest(about), made.state_dict())]))

    def _timed(self, make: Callable[[], T]) -> T:
        """What `make` returns, and no memory that it freed.

        Its time counts once where one finding needs another.
        """
        started, outermost = time.perf_counter(), not self._making
        self._making += 1
        try:
            return make()
        finally:
            self._making -= 1
            if outermost:
                give_back()
                self.seconds += time.perf_counter() - started
