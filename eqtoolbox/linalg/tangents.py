"""Forward derivatives, one thread at a time: torch keeps a single level of them for a process.

A second thread that enters it fails, or ends the first one's; what is left open fails all later
ones. The lock keeps ours apart; a user's own derivatives in other threads do not know of it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad

_one = threading.RLock()  # derivatives of derivatives stay in their thread


@contextmanager
def dual_level() -> Iterator[None]:
    """`torch.autograd.forward_ad.dual_level`, entered when no other thread of ours is in it."""
    with _one, forward_ad.dual_level():
        yield


def jvp(function: Callable[..., Any], primals: Any, tangents: Any) -> tuple[Any, Any]:
    """`torch.func.jvp(function, primals, tangents)`, when no other thread of ours is in it.

    Example:
        >>> jvp(torch.square, (torch.tensor(3.0),), (torch.tensor(1.0),))
        (tensor(9.), tensor(6.))
    """
    with _one:
        found: Any = torch.func.jvp(function, primals, tangents)
        return found[0], found[1]
