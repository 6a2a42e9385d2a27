"""The budget: which due probes training time has paid for."""

from collections.abc import Mapping, Sequence
from typing import Any

UNSEEN = 8e-6  # seconds a step that no clock inside the monitor sees (benchmarks/surface_budget.py)
LOSS = "training"  # the loss and the learning rate, measured where nothing else is


class Budget:
    """One token bucket for each probe, all with the same part of the share.

    Training earns `share` of its time as credit. A probe runs when it has saved up what its last
    run cost: cheap probes run often, dear ones seldom, and together they stay within the share.
    What the monitor itself takes counts too: hooks of steps that are not due come off the income,
    with `UNSEEN` for each step, and catching and writing a due step are paid by what was measured
    at it.

    The first run of each probe is free and counted apart, as set-up (symmetries found, the
    self-test, libraries loaded): it would silence a short run for good.

    Args:
        share: of training time, such as 0.05; None for no limit.
        names: of the probes.

    Raises:
        ValueError: as `check_share`.
    """

    def __init__(self, share: float | None, names: Sequence[str]) -> None:
        check_share(share)
        self.share = share
        self.training = 0.0  # seconds
        self.probing = 0.0  # seconds of everything the monitor does but its set-up
        self.setup = 0.0
        self._balance = dict.fromkeys((*names, LOSS), 0.0)
        self._costs: dict[str, float] = {}  # seconds that each probe's next run may take

    @property
    def overhead(self) -> float:
        """The monitor's time over training time so far, set-up apart."""
        return self.probing / max(self.training, 1e-9)

    def earn(self, seconds: float) -> None:
        """Training took `seconds`."""
        self.training += seconds
        if self.share is not None:
            self._credit(self.share * seconds)

    def keep(self, seconds: float) -> None:
        """What the monitor always does took `seconds`."""
        self.probing += seconds
        self._credit(-seconds)

    def spend(self, seconds: Mapping[str, float], once: Mapping[str, float], shared: float) -> None:
        """A due step was measured.

        Args:
            seconds: that each probe took.
            once: seconds of these that no later run takes again.
            shared: seconds that all of them made necessary together.
        """
        for name, own in seconds.items():
            cost = own + shared / len(seconds)
            if name in self._costs:
                self.probing += cost
                self._balance[name] -= cost
                self._costs[name] = cost - once.get(name, 0.0)
            else:
                self.setup += cost
                self._costs[name] = own - once.get(name, 0.0)
        if not seconds:
            self.keep(shared)

    def affords(self, name: str) -> bool:
        """Whether the probe may run now."""
        unknown = self.share is None or name not in self._costs
        return unknown or self._balance[name] >= self._costs[name]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "training": self.training,
            "probing": self.probing,
            "setup": self.setup,
            "balance": dict(self._balance),
            "costs": dict(self._costs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; probes that are new start at nothing."""
        self.training, self.probing = state["training"], state["probing"]
        self.setup = state.get("setup", 0.0)
        self._balance |= {n: b for n, b in state["balance"].items() if n in self._balance}
        self._costs = dict(state["costs"])

    def _credit(self, seconds: float) -> None:
        for name in self._balance:
            self._balance[name] += seconds / len(self._balance)


def check_share(budget: float | None) -> None:
    """Refuse what is no share of training time.

    Raises:
        ValueError: it is no number above 0 and up to 1; per cents are recognised.
    """
    if budget is None:
        return
    number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
    if not number or not 0 < budget <= 1:
        percents = number and 1 < budget <= 100
        hint = f"; did you mean {budget / 100:g}?" if percents else ""
        raise ValueError(
            "budget is a share of training time such as 0.05, at most 1, or None for no limit, "
            f"got {budget!r}{hint}"
        )
