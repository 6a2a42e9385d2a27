"""`torch.distributed.checkpoint`: a monitor's state as one value, which loads as it was saved."""

import io
from typing import Any

import torch

from eqtoolbox.expect.fit import fitted
from eqtoolbox.watch.monitor import Monitor

STATE = "eqtoolbox"  # its only key


class DistributedState:
    """A monitor as what `torch.distributed.checkpoint` calls stateful.

    A distributed load fills the entries that are there already, and a new monitor has none of
    what a run goes on from; so its state is one entry. The first rank's is saved, all ranks load
    it, however many they are.

    Args:
        monitor: attached on every rank; `resume=True` where a run goes on.

    Example:
        >>> import eqtoolbox as eq
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with eq.attach(model, optimizer, criterion=torch.nn.MSELoss()) as monitor:
        ...     saved = DistributedState(monitor).state_dict()
        >>> list(saved)
        ['eqtoolbox']
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = fitted("monitor", monitor, Monitor)

    def state_dict(self) -> dict[str, Any]:
        """The state in one entry, which is not looked into."""
        buffer = io.BytesIO()
        torch.save(self._monitor.state_dict(), buffer)
        return {STATE: buffer.getvalue()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; all ranks do.

        Raises:
            KeyError, TypeError, ValueError: it is no monitor's state.
        """
        held = io.BytesIO(fitted("state_dict[...]", state_dict[STATE], bytes))
        self._monitor.load_state_dict(torch.load(held, map_location="cpu", weights_only=True))
