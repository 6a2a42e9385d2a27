"""A stopwatch: seconds spent in scopes that are scattered over a training step."""

import time


class Stopwatch:
    """Adds up the time inside `with stopwatch:`; scopes do not nest."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._started

    def take(self) -> float:
        """The seconds since the last `take`."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
