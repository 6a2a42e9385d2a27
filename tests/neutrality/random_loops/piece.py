"""Piece: a part of a random model by its name, with what must be known to combine it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

WIDTH = 6


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A module that maps (samples, WIDTH) to (samples, WIDTH)."""

    make: Callable[[], nn.Module]
    remembers: bool = False  # keeps state that is no parameter and no buffer
    draws: bool = False  # from the global random streams
    shared: bool = False  # its state belongs to the process, not to the module
    idempotent: bool = False  # one more call does not change what it keeps
    copies: bool = True  # can be deep-copied
    refused: str = ""  # what a monitor must name when it refuses to evaluate this


PIECES: dict[str, Piece] = {}


def piece(name: str, **known: Any) -> Callable[[Any], Any]:
    """Enter a class or a function without arguments into the catalogue."""

    def enter(make: Any) -> Any:
        assert name not in PIECES, name
        PIECES[name] = Piece(make=make, **known)
        return make

    return enter


class Memory(nn.Module):
    """What it remembers of earlier calls scales the output, so that one call more is seen."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 0.05 * math.tanh(self.remember(x.detach().float())))

    def remember(self, x: Tensor) -> float:
        """Take the activations in, and give a number from all so far."""
        raise NotImplementedError

    def look(self) -> Any:
        """State that lies outside of the instance."""
        return None


def memory(name: str, **known: Any) -> Callable[[Any], Any]:
    """Enter a `Memory`."""
    return piece(name, remembers=True, **known)
