"""The clock: what of the time that passes is training's, and what is the monitor's."""

import time
from collections.abc import Mapping

from eqtoolbox.watch.budget import UNSEEN, Budget
from eqtoolbox.watch.capture.stopwatch import Stopwatch


class Clock:
    """Divides time between training and the monitor, and settles both with the budget.

    Args:
        budget: earns by training and pays for the monitor.
        catching: of what runs inside the training step.
    """

    def __init__(self, budget: Budget, catching: Stopwatch) -> None:
        self._budget = budget
        self._catching = catching
        self._left_at: float | None = None  # when training was last left alone
        self._idle = 0.0  # seconds that hooks took at steps that were not caught
        self._busy = 0.0  # and at the one that is, up to now

    @property
    def running(self) -> bool:
        """Whether training was left alone once: the time before is not known."""
        return self._left_at is not None

    def begin(self, started: float) -> None:
        """Training goes on from then, if it was not known to run."""
        if self._left_at is None:
            self._left_at = started

    def idle(self, started: float) -> None:
        """A hook that measured nothing took the time since then."""
        self._idle += time.perf_counter() - started + UNSEEN

    def apart(self, started: float) -> None:
        """The time since then is nobody's: the user asked for something between steps."""
        if self._left_at is not None:
            self._left_at += time.perf_counter() - started

    def earn(self) -> float:
        """Training took the time since it was last left alone, but for catching; the time now."""
        now = time.perf_counter()
        caught, idle, self._idle = self._catching.take(), self._idle, 0.0
        self._busy += caught
        self._budget.keep(idle)
        if self._left_at is not None:
            self._budget.earn(now - self._left_at - caught - idle)
        self._left_at = now
        return now

    def leave(self, started: float) -> None:
        """The step was made ready since then, and training goes on."""
        self._left_at = time.perf_counter()
        self._busy += self._left_at - started

    def hold(self) -> None:
        """Training goes on; what was done since `earn` is paid later, by those who did it."""
        self._left_at = time.perf_counter()

    def pay(self, started: float, spent: dict[str, float], once: Mapping[str, float]) -> float:
        """What the step took since then, and before, is shared by what was measured; the time.

        Args:
            started: when the step was over.
            spent, once: seconds of each probe, as `Budget.spend` takes them.
        """
        ended = time.perf_counter()
        self._budget.spend(spent, once, self._busy + ended - started - sum(spent.values()))
        self._busy = 0.0
        return ended

    def resume(self, ended: float) -> None:
        """What was done since then is the monitor's, and training goes on."""
        self._left_at = time.perf_counter()
        self._budget.keep(self._left_at - ended + UNSEEN)
