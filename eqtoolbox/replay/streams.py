"""Random streams: the global ones of torch, NumPy and Python, as a step had them."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqtoolbox.replay.scope import current
from eqtoolbox.replay.states import alike


class TorchStreams:
    """The state of torch's global generators."""

    def __init__(self) -> None:
        self.cpu: Tensor = torch.get_rng_state()
        self.cuda: list[Tensor] = torch.cuda.get_rng_state_all() if cuda_started() else []

    def restore(self) -> None:
        """Put them back to this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)

    def moved(self) -> bool:
        """Whether the processor's is in another state now."""
        return not torch.equal(torch.get_rng_state(), self.cpu)


BOTH = frozenset({"numpy", "python"})


class OtherStreams:
    """The state of the global generators of NumPy and Python, or of one of them."""

    def __init__(self, names: frozenset[str] = BOTH) -> None:
        self.names = names
        self.numpy: Any = np.random.get_state() if "numpy" in names else None  # noqa: NPY002
        self.python: Any = random.getstate() if "python" in names else None

    def restore(self, names: frozenset[str] = BOTH) -> None:
        """Put them back to this state."""
        if "numpy" in names & self.names:
            np.random.set_state(self.numpy)  # noqa: NPY002
        if "python" in names & self.names:
            random.setstate(self.python)

    def moved(self) -> frozenset[str]:
        """Those that are in another state now."""
        now = OtherStreams(self.names)
        same = {"numpy": alike(now.numpy, self.numpy), "python": now.python == self.python}
        return frozenset(name for name in self.names if not same[name])


class RandomState:
    """The state of every random stream a training loop draws from.

    `moves` has those of NumPy's and Python's that what began here drew from; both if nobody looked.
    """

    def __init__(self) -> None:
        self.torch = TorchStreams()
        self.other = OtherStreams()
        self.moves = BOTH

    def restore(self) -> None:
        """Put all streams back to this state."""
        self.torch.restore()
        self.other.restore()

    @classmethod
    def seeded(cls, seed: int) -> "RandomState":
        """The state after seeding every stream with `seed`; the streams themselves do not move."""
        state = cls()
        state.torch.cpu = torch.Generator().manual_seed(seed).get_state()
        for k, _ in enumerate(state.torch.cuda):
            state.torch.cuda[k] = torch.Generator(f"cuda:{k}").manual_seed(seed).get_state()
        state.other.numpy = np.random.RandomState(seed % 2**32).get_state()
        state.other.python = random.Random(seed).getstate()
        return state

    def ended(self) -> None:
        """What began in this state is over now."""
        self.moves = self.other.moved()


class Frame:
    """The random streams inside one evaluation: put to its start when it first draws.

    torch tells of every draw (`eqtoolbox.replay.operations`), so that an evaluation that does not
    draw leaves streams alone that other threads may be drawing from.
    """

    def __init__(self, start: RandomState | None) -> None:
        self.drawn = False
        self._start = start
        self._outside: TorchStreams | None = None
        self._other: OtherStreams | None = None
        if start is not None and start.moves:
            self._other = OtherStreams(start.moves)
            start.other.restore(start.moves)

    def draw(self) -> None:
        """The body draws from torch's streams now."""
        if not self.drawn:
            self.drawn, self._outside = True, TorchStreams()
            if self._start is not None:
                self._start.torch.restore()

    def close(self) -> None:
        """Put back what was moved."""
        if self._outside is not None:
            self._outside.restore()
        if self._other is not None:
            self._other.restore()


@contextmanager
def random_streams(start: RandomState | None = None) -> Iterator[None]:
    """Run the body from the random state `start` and put the streams back afterwards."""
    replay, frame = current(), Frame(start)
    if replay is None:
        frame.draw()  # nothing would tell of it
    else:
        replay.frames.append(frame)
    try:
        yield
    finally:
        if replay is not None:
            replay.frames.remove(frame)
        frame.close()


def alone() -> bool:
    """Whether no other thread runs that could be drawing from the global streams."""
    return threading.active_count() == 1


def cuda_started() -> bool:
    """Whether CUDA is in use already; asking for its random state would start it."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
