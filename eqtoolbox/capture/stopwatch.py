"""A stopwatch: seconds spent in scopes that are scattered over a training step."""

import time

from eqtoolbox.replay.apart import Apart


class Stopwatch:
    """Adds up the time inside `with stopwatch:`, which is apart from the training.

    Scopes do not nest.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0
        self._apart = Apart()

    def __enter__(self) -> None:
        self._started = time.perf_counter()
        self._apart.__enter__()

    def __exit__(self, *error: object) -> None:
        self._apart.__exit__()
        self.seconds += time.perf_counter() - self._started

    def take(self) -> float:
        """The seconds since the last `take`."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
