"""Memories in functions: closures, default arguments, attributes, bound objects and caches."""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tests.neutrality.random_loops.objects import Helper
from tests.neutrality.random_loops.piece import Memory, memory


class Function(Memory):
    """Calls a function that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.function = self.made()

    def made(self) -> Callable[[Tensor], float]:
        raise NotImplementedError

    def remember(self, x: Tensor) -> float:
        return self.function(x)


@memory("closure", copies=False)
class Closure(Function):
    def made(self) -> Callable[[Tensor], float]:
        calls = 0

        def count(x: Tensor) -> float:
            nonlocal calls
            calls += 1
            return 0.1 * calls

        return count


@memory("default argument", copies=False)
class Default(Function):
    def made(self) -> Callable[[Tensor], float]:
        def total(x: Tensor, seen: list[float] = []) -> float:  # noqa: B006 - on purpose
            seen.append(float(x.mean()) + 0.1)
            return sum(seen)

        return total


@memory("attribute of a function", copies=False)
class OfFunction(Function):
    def made(self) -> Callable[[Tensor], float]:
        def count(x: Tensor) -> float:
            count.calls += 1  # type: ignore[attr-defined]
            return 0.1 * count.calls  # type: ignore[attr-defined]

        count.calls = 0  # type: ignore[attr-defined]
        return count


@memory("partial")
class Partial(Function):
    def made(self) -> Callable[[Tensor], float]:
        return functools.partial(_total, [])


def _total(seen: list[float], x: Tensor) -> float:
    seen.append(float(x.mean()) + 0.1)
    return sum(seen)


@memory("bound method")
class Bound(Function):
    def made(self) -> Callable[[Tensor], float]:
        return Helper.Average().__call__


@functools.lru_cache(maxsize=2)
def cached(key: int) -> list[float]:
    return [0.1 * key]


@memory("lru_cache", shared=True)
class Cached(Memory):
    """A value that is computed once and changed by whoever gets it."""

    def __init__(self) -> None:
        super().__init__()
        cached.cache_clear()

    def remember(self, x: Tensor) -> float:
        cached(1)[0] += 0.1
        return cached(1)[0]

    def look(self) -> Any:
        return cached
