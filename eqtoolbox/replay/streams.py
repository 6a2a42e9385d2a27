"""Random streams: the global ones of torch, NumPy and Python, as a step had them."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqtoolbox.replay.kinds import TELLING
from eqtoolbox.replay.listening import listening
from eqtoolbox.replay.scope import current
from eqtoolbox.replay.states import alike


class TorchStreams:
    """The state of torch's global generators."""

    def __init__(self) -> None:
        self.cpu: Tensor = torch.default_generator.get_state()
        self.cuda: list[Tensor] = torch.cuda.get_rng_state_all() if cuda_started() else []

    def restore(self) -> None:
        """Put them back to this state."""
        torch.default_generator.set_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)

    def moved(self) -> bool:
        """Whether one of them is in another state now."""
        now = TorchStreams()
        pairs = zip((now.cpu, *now.cuda), (self.cpu, *self.cuda), strict=False)
        return len(now.cuda) != len(self.cuda) or not all(torch.equal(a, b) for a, b in pairs)


BOTH = frozenset({"numpy", "python"})
ALL = BOTH | {"torch"}


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

    `moves` has those that moved while what began here went on; all if nobody looked. `silent` has
    those that it is known to draw from without a word.
    """

    def __init__(self, silent: frozenset[str] = frozenset()) -> None:
        self.torch = TorchStreams()
        self.other = OtherStreams()
        self.moves, self.silent = ALL, silent

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
        self.moves = self.other.moved() | ({"torch"} if self.torch.moved() else set())


class Frame:
    """The random streams inside one evaluation: each begins at its start when first drawn from.

    Other threads may be drawing from them, too: where nothing draws they are left alone.

    Args:
        start: their states where the evaluation begins; None to leave them where they are.
        known: those that will be drawn from.
    """

    def __init__(self, start: RandomState | None, known: frozenset[str]) -> None:
        self.said = False  # whether an operation told that it draws
        self._drawn: set[str] = set()
        self._start = start
        self._outside: list[TorchStreams | OtherStreams] = []
        for name in known & start.moves | start.silent if start is not None else ():
            self.draw(name)

    def draw(self, name: str = "torch") -> None:
        """The body draws from this stream now."""
        if name in self._drawn:
            return
        self._drawn.add(name)
        names = frozenset({name})
        self._outside.append(TorchStreams() if name == "torch" else OtherStreams(names))
        if self._start is not None and name == "torch":
            self._start.torch.restore()
        elif self._start is not None:
            self._start.other.restore(names)

    def close(self) -> None:
        """Put back what was moved."""
        for streams in self._outside:
            streams.restore()


@contextmanager
def random_streams(start: RandomState | None = None) -> Iterator[None]:
    """Run the body from the random state `start` and put the streams back afterwards."""
    replay = current()
    if replay is None:  # nothing would tell of a draw
        frame = Frame(start, ALL)
        frame.draw()
        try:
            yield
        finally:
            frame.close()
        return
    known = ALL if alone() else replay.drawn_from
    frame = Frame(start, known)
    replay.frames.append(frame)
    unsure = (start.moves & BOTH) - known if start and not replay.listened else frozenset()
    try:
        with listening(unsure, replay.drawn) if unsure else nullcontext():
            yield
        replay.listened = True
    finally:
        replay.frames.remove(frame)
        frame.close()


def alone() -> bool:
    """Whether no other thread runs that could be drawing from the global streams."""
    return threading.active_count() == 1 or all(map(_idle, threading.enumerate()))


def _idle(thread: threading.Thread) -> bool:
    """Whether it is this one, or one of a library that only shows or sends what it is told."""
    made = type(thread).__module__, getattr(vars(thread).get("_target"), "__module__", None)
    tells = any(str(name).partition(".")[0] in TELLING for name in made)
    return tells or thread is threading.current_thread()


def cuda_started() -> bool:
    """Whether CUDA is in use already; asking for its random state would start it."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
