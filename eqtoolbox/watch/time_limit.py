"""A time limit: how long a probe may go on at one step before its replays are stopped."""

import math
from typing import Annotated, Literal

from eqtoolbox.expect.bounds import OWN

Timeout = Annotated[float | Literal["auto"] | None, OWN]

TIMES = 20.0  # what a probe took before
LEAST = 30.0  # seconds
FIRST = 600.0  # seconds of the first run: it searches symmetries, loads libraries


class TimeLimit:
    """Seconds that each probe may take: 20 times its longest run so far, at least 30 s.

    The first run may take 600 s. Runs that were stopped teach nothing, nor does what a first run
    does once for all.

    Args:
        given: seconds for every run instead; None for no limit.

    Raises:
        ValueError: as `check_timeout`.
    """

    def __init__(self, given: Timeout = "auto") -> None:
        check_timeout(given)
        self._given = given
        self._longest: dict[str, float] = {}

    def of(self, name: str) -> float | None:
        """Seconds that the coming run of this probe may take; None for as long as it likes."""
        if self._given != "auto":
            return self._given
        return max(LEAST, TIMES * self._longest[name]) if name in self._longest else FIRST

    def learn(self, name: str, seconds: float) -> None:
        """A run took `seconds` and came to its end."""
        self._longest[name] = max(seconds, self._longest.get(name, 0.0))

    def exceeded(self, name: str, seconds: float) -> str:
        """What to say of a run that took longer."""
        before = f", before at most {self._longest[name]:.3g} s" if name in self._longest else ""
        return (
            f"took {seconds:.3g} s, more than its limit of {self.of(name):.3g} s{before}; rows "
            "measured until then are kept, probe_timeout= of attach sets another limit"
        )


def check_timeout(timeout: Timeout) -> None:
    """Refuse what is no time limit.

    Raises:
        ValueError: it is neither a number of seconds above 0, nor "auto", nor None.
    """
    if timeout is None or (isinstance(timeout, str) and timeout == "auto"):
        return
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not 0 < float(timeout) < math.inf:
        raise ValueError(
            "probe_timeout is a number of seconds above 0, 'auto' for a multiple of what a probe "
            f"took before, or None for no limit, got {timeout!r}"
        )
