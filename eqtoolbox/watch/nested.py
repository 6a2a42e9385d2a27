"""Nested: steps inside of steps, as where a subclass's `step` calls that of its parent."""

import functools
import sys
from types import FrameType

import torch

from eqtoolbox.replay.eager import untraced

_CALLS_HOOKS = torch.optim.Optimizer.profile_hook_step(lambda self: None).__code__


@untraced
def nested(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a hook is called for a step of this optimizer that another step of it calls.

    torch has every class that defines `step` call the hooks: `super().step()` calls them once more,
    with the parameters in the midst of the step.

    Example:
        >>> nested(torch.optim.SGD([torch.zeros(1)]))
        False
    """
    return _several(type(optimizer)) and _depth(optimizer) > 1  # type: ignore[arg-type]


@functools.lru_cache(maxsize=100)
def _several(kind: type[torch.optim.Optimizer]) -> bool:
    """Whether more than one class has a `step`, besides torch's own that only raises."""
    return sum("step" in vars(c) for c in kind.__mro__ if c is not torch.optim.Optimizer) > 1


def _depth(optimizer: torch.optim.Optimizer) -> int:
    """How many steps of it are being taken."""
    found = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        found += frame.f_code is _CALLS_HOOKS and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return found
