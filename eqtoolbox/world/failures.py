"""Failures: how ranks tell each other what one of them failed of, so that all take the same way."""

from collections.abc import Mapping

import torch

from eqtoolbox.world.world import OtherRank

OTHER, NOT_FINITE, MEMORY = 1, 2, 3


def code_of(error: BaseException) -> int:
    """A number for the kind of a failure; the largest of several is what all hear."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error):
        return MEMORY
    return NOT_FINITE if isinstance(error, FloatingPointError) else OTHER


def raised_by(code: int, words: Mapping[int, str]) -> Exception:
    """What a rank raises as another one failed.

    Args:
        code: of the kind of failure.
        words: of those that failed, by rank.
    """
    said = "; ".join(f"rank {rank}: {why}" for rank, why in words.items()) or "another rank failed"
    kinds = {MEMORY: torch.OutOfMemoryError, NOT_FINITE: FloatingPointError}
    made: Exception = kinds.get(code, OtherRank)(said)
    return made
