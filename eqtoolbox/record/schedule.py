"""A schedule: a function from the optimizer step (0, 1, 2, ...) to whether a probe is due."""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from operator import index
from typing import Annotated

from eqtoolbox.expect.bounds import takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.fit import Unexpected, fitted

Schedule = Annotated[Callable[[int], bool], takes(1, "step -> bool")]
MOST = 1_000_000  # steps that a schedule lists


@checked
@dataclass(frozen=True)
class every:
    """Due at step `offset` and each `n` steps after it; `every(0)` is never due.

    Example:
        >>> [step for step in range(10) if every(3, offset=1)(step)]
        [1, 4, 7]
    """

    n: int
    offset: int = 0

    def __post_init__(self) -> None:
        if self.n < 0 or self.offset < 0:
            raise ValueError(
                f"every(n, offset) needs n >= 0 and offset >= 0, got n={self.n}, "
                f"offset={self.offset}; use every(0) to switch a probe off"
            )

    def __call__(self, step: int) -> bool:
        return self.n > 0 and step >= self.offset and (step - self.offset) % self.n == 0

    def following(self, step: int) -> float:
        """The first step from `step` on that is due; infinite if there is none."""
        if self.n == 0:
            return math.inf
        return self.offset + max(0, -(-(step - self.offset) // self.n)) * self.n


@checked
@dataclass(frozen=True)
class at:
    """Due at the listed steps.

    Example:
        >>> at([0, 5])(5)
        True
    """

    steps: Collection[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", frozenset(index(s) for s in self.steps))
        if any(s < 0 for s in self.steps):
            raise ValueError(f"at(steps) needs steps >= 0, got {sorted(self.steps)}")

    def __call__(self, step: int) -> bool:
        return step in self.steps

    def following(self, step: int) -> float:
        """The first step from `step` on that is due; infinite if there is none."""
        return _following(self._sorted, step)

    @cached_property
    def _sorted(self) -> list[int]:
        return sorted(self.steps)

    def __repr__(self) -> str:
        return f"at({sorted(self.steps)})"


@checked
@dataclass(frozen=True)
class log_spaced:
    """Due at about `n` steps up to `until`, evenly spaced in log(step + 1): dense early, rare late.

    Example:
        >>> [step for step in range(101) if log_spaced(5, until=100)(step)]
        [0, 2, 9, 31, 100]
    """

    n: int = 100
    until: int = 100_000
    steps: frozenset[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 2 <= self.n <= MOST or self.until < 1:
            raise ValueError(
                f"log_spaced(n, until) needs n >= 2, at most {MOST}, and until >= 1, "
                f"got n={self.n}, until={self.until}"
            )
        ratio = (self.until + 1) ** (1 / (self.n - 1))
        steps = frozenset(round(ratio**i) - 1 for i in range(self.n))
        object.__setattr__(self, "steps", steps)

    def __call__(self, step: int) -> bool:
        return step in self.steps

    def following(self, step: int) -> float:
        """The first step from `step` on that is due; infinite if there is none."""
        return _following(self._sorted, step)

    @cached_property
    def _sorted(self) -> list[int]:
        return sorted(self.steps)


def following(schedule: Schedule, step: int) -> float:
    """The first step from `step` on that may be due; of a function only asking it can tell."""
    known = getattr(schedule, "following", None)
    return float(known(step)) if known is not None else step


def _following(steps: list[int], step: int) -> float:
    place = bisect_left(steps, step)
    return steps[place] if place < len(steps) else math.inf


def as_schedule(value: "int | Schedule") -> Schedule:
    """A schedule from an int n (every n-th step) or from any callable `int -> bool`."""
    if callable(value):
        schedule: Schedule = fitted("schedule", value, Schedule)
        return schedule
    try:
        n = fitted("schedule", value, int)
    except Unexpected:
        raise TypeError(
            f"a schedule is an int n (every n-th step) or a callable step -> bool, got {value!r}"
        ) from None
    return every(n)
