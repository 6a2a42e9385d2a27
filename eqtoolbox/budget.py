"""The budget: which due probes training time has paid for."""

from collections.abc import Sequence
from typing import Any


class Budget:
    """A token bucket that may go into debt.

    Training earns `share` of its time as credit. A probe runs while the balance, less what the
    probes before it cost last time, is not negative; training then pays the debt off. Those that
    wait longest come first, so none starves, and the first run of each needs no credit.

    Args:
        share: of training time, such as 0.05; None for no limit.
    """

    def __init__(self, share: float | None) -> None:
        self.share = share
        self.training = 0.0  # seconds
        self.probing = 0.0
        self._balance = 0.0
        self._costs: dict[str, float] = {}  # seconds of each probe's last run
        self._last_run: dict[str, int] = {}  # step of it

    @property
    def overhead(self) -> float:
        """Probing over training time so far."""
        return self.probing / max(self.training, 1e-9)

    def earn(self, seconds: float) -> None:
        """Training took `seconds`."""
        self.training += seconds
        self._balance += (self.share or 0.0) * seconds

    def spend(self, seconds: float) -> None:
        """Probing took `seconds`."""
        self.probing += seconds
        self._balance -= seconds

    def ran(self, name: str, step: int, seconds: float) -> None:
        """Remember when a probe ran and what it cost."""
        self._last_run[name], self._costs[name] = step, seconds

    def affordable(self, due: Sequence[str]) -> list[str]:
        """Those of the due probes that may run, the longest waiting first."""
        if self.share is None:
            return list(due)
        run: list[str] = []
        for name in sorted(due, key=lambda n: self._last_run.get(n, -1)):
            planned = sum(self._costs.get(n, 0.0) for n in run)
            if name not in self._last_run or self._balance - planned >= 0:
                run.append(name)
        return run

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "training": self.training,
            "probing": self.probing,
            "balance": self._balance,
            "costs": dict(self._costs),
            "last_run": dict(self._last_run),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.training, self.probing = state["training"], state["probing"]
        self._balance = state["balance"]
        self._costs, self._last_run = dict(state["costs"]), dict(state["last_run"])
