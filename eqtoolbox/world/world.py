"""A world: the processes that train one model together; here the trivial one, of one process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from eqtoolbox.world.shards import ALONE, Shards

T = TypeVar("T")


class Retired(Exception):
    """The processes parted: nothing is measured any more; says whose fault it was, and what."""


class OtherRank(RuntimeError):
    """Another process failed at what all were doing; the message says which, and how."""


class World:
    """One process: what is asked of all ranks is its own answer, and nothing is exchanged.

    A world of several ranks has one rule: all of them call these methods in the same order, or
    none does. `together` marks what must be done by all, so that the failure of one is told to all.

    Attributes:
        rank: of this process, from 0.
        size: processes over whose shares of the batch training averages.
        waited: seconds that this process has waited for others.
        retired: why nothing is exchanged any more; empty while it is.
    """

    rank: int = 0
    size: int = 1
    waited: float = 0.0
    retired: str = ""

    @property
    def first(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Scope of something that all ranks do, such as a probe at a step.

        Raises:
            OtherRank: it failed on another rank; nobody is left waiting.
            Retired: the ranks do not do the same, or one does not answer.
        """
        yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Scope of something that this rank does by itself."""
        yield

    @property
    def sharded(self) -> bool:
        """Whether this process holds pieces of the parameters."""
        return False

    @property
    def shards(self) -> Shards:
        """What of the parameters this process holds."""
        return ALONE

    @property
    def inside(self) -> bool:
        """Whether all ranks are inside of a scope of `together`, and none is `alone`."""
        return False

    def decided(self, what: str, numbers: Sequence[float]) -> list[float]:
        """The numbers of the first rank about something; as many on each."""
        return list(numbers)

    def most(self, what: str, numbers: Sequence[float]) -> list[float]:
        """The largest of each over all ranks."""
        return list(numbers)

    def of_first(self, what: str, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank, which alone calls it; the others wait."""
        return make()

    def each(self, what: str, value: T) -> list[T]:
        """A plain value of every rank, what can be pickled, by rank."""
        return [value]

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sum of each tensor over all ranks, the same on each of them."""
        return list(tensors)

    def retire(self, why: str) -> None:
        """Exchange and measure nothing from now on."""
        self.retired = self.retired or why

    def close(self, why: str = "") -> None:
        """This rank takes part in nothing any more."""
