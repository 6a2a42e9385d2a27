"""Memories in random generators of the model's own, and in iterators and files."""

import io
import itertools
import random
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.neutrality.random_loops.piece import Memory, memory


class Own(Memory):
    """Draws from a source of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.source = self.made()

    def made(self) -> Any:
        raise NotImplementedError

    def remember(self, x: Tensor) -> float:
        return float(next(self.source))


@memory("torch generator", copies=False)
class Torch(Own):
    def made(self) -> Any:
        return torch.Generator().manual_seed(3)

    def remember(self, x: Tensor) -> float:
        return float(torch.randn(1, generator=self.source))


@memory("torch generator in a helper", copies=False)
class Helped(Torch):
    def made(self) -> Any:
        return {"sources": [torch.Generator().manual_seed(3)]}

    def remember(self, x: Tensor) -> float:
        return float(torch.empty(1).normal_(generator=self.source["sources"][0]))


@memory("NumPy generator")
class Numpy(Own):
    def made(self) -> Any:
        return np.random.default_rng(3)

    def remember(self, x: Tensor) -> float:
        return float(self.source.standard_normal())


@memory("NumPy random state")
class Legacy(Own):
    def made(self) -> Any:
        return np.random.RandomState(3)

    def remember(self, x: Tensor) -> float:
        return float(self.source.randn())


@memory("Python generator of numbers")
class Python(Own):
    def made(self) -> Any:
        return random.Random(3)

    def remember(self, x: Tensor) -> float:
        return self.source.gauss(0.0, 1.0)


@memory("global streams", draws=True)
class Global(Own):
    def made(self) -> Any:
        return [0.0]

    def remember(self, x: Tensor) -> float:
        self.source[0] += random.random() + float(np.random.rand()) + float(torch.rand(1))
        return self.source[0]


@memory("string in memory")
class Text(Own):
    def made(self) -> Any:
        return io.StringIO()

    def remember(self, x: Tensor) -> float:
        self.source.write(f"{float(x.mean()):.3f} ")
        return 0.01 * self.source.tell()


@memory("iterator of a list", copies=False)
class OfList(Own):
    def made(self) -> Any:
        return iter([0.1 * i for i in range(1000)])


@memory("itertools", copies=False)
class Itertools(Own):
    def made(self) -> Any:
        return itertools.accumulate(itertools.cycle([0.1, 0.2, 0.3]))


@memory("generator function", copies=False, refused="source|generator")
class Generating(Own):
    def made(self) -> Any:
        def values() -> Iterator[float]:
            value = 0.0
            while True:
                value += 0.1
                yield value

        return values()


@memory("file", copies=False, refused="source|file|TextIO")
class File(Own):
    def made(self) -> Any:
        file = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the model lives
        weakref.finalize(self, file.close)
        return file

    def remember(self, x: Tensor) -> float:
        self.source.write("+")
        return 0.1 * self.source.tell()
