"""The budget: which due probes training time has paid for."""

from collections.abc import Sequence
from typing import Any


class Budget:
    """One token bucket for each probe, all with the same part of the share.

    Training earns `share` of its time as credit. A probe runs when it has saved up what its last
    run cost: cheap probes run often, dear ones seldom, and together they stay within the share. The
    first run of each is free: it holds the set-up (symmetries found, the self-test, libraries
    loaded), which would silence a short run for good.

    Args:
        share: of training time, such as 0.05; None for no limit.
        names: of the probes.
    """

    def __init__(self, share: float | None, names: Sequence[str]) -> None:
        self.share = share
        self.training = 0.0  # seconds
        self.probing = 0.0
        self._balance = dict.fromkeys(names, 0.0)
        self._costs: dict[str, float] = {}  # seconds of each probe's last run

    @property
    def overhead(self) -> float:
        """Probing over training time so far."""
        return self.probing / max(self.training, 1e-9)

    def earn(self, seconds: float) -> None:
        """Training took `seconds`."""
        self.training += seconds
        if self.share is not None:
            for name in self._balance:
                self._balance[name] += self.share * seconds / len(self._balance)

    def spend(self, name: str, seconds: float) -> None:
        """The probe took `seconds`."""
        self.probing += seconds
        if name in self._costs:
            self._balance[name] -= seconds
        self._costs[name] = seconds

    def affords(self, name: str) -> bool:
        """Whether the probe may run now."""
        unknown = self.share is None or name not in self._costs
        return unknown or self._balance[name] >= self._costs[name]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "training": self.training,
            "probing": self.probing,
            "balance": dict(self._balance),
            "costs": dict(self._costs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; probes that are new start at nothing."""
        self.training, self.probing = state["training"], state["probing"]
        self._balance |= {n: b for n, b in state["balance"].items() if n in self._balance}
        self._costs = dict(state["costs"])
