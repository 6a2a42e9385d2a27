"""Guests: for losses that must know whether they are evaluated by the training or for a probe."""

from eqtoolbox.replay.scope import current


def evaluating() -> bool:
    """Whether this thread evaluates a loss again for a probe, not for the training loop."""
    return current() is not None
