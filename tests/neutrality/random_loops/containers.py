"""Memories in Python's containers, in the module itself or deep inside of what it holds."""

import array
import collections
import heapq
import queue
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.neutrality.random_loops.piece import Memory, memory


@memory("list")
class List(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.history: list[float] = []

    def remember(self, x: Tensor) -> float:
        self.history.append(float(x.mean()))
        return sum(self.history) + 0.1 * len(self.history)


@memory("list rebound")
class Rebound(List):
    def remember(self, x: Tensor) -> float:
        self.history = [*self.history[-3:], float(x.mean()) + 0.1]
        return sum(self.history)


@memory("heap")
class Heap(List):
    def remember(self, x: Tensor) -> float:
        heapq.heappush(self.history, -float(x.mean()) - 0.1 * len(self.history))
        return self.history[0]


@memory("dictionary")
class Counters(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.stats = {"calls": 0, "sum": 0.0}

    def remember(self, x: Tensor) -> float:
        self.stats["calls"] += 1
        self.stats["sum"] += float(x.mean())
        self.stats[f"call {self.stats['calls']}"] = 1.0
        return 0.1 * self.stats["calls"] + self.stats["sum"]


@memory("counters of the library")
class Collections(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.seen: collections.Counter[str] = collections.Counter()
        self.by_sign: dict[bool, list[float]] = collections.defaultdict(list)
        self.order: collections.OrderedDict[int, float] = collections.OrderedDict()

    def remember(self, x: Tensor) -> float:
        mean = float(x.mean())
        self.seen.update(["call"])
        self.by_sign[mean > 0].append(mean)
        self.order[self.seen["call"] % 3] = mean
        self.order.move_to_end(next(iter(self.order)))
        return 0.1 * self.seen["call"] + sum(self.by_sign[True])


@memory("set")
class Set(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def remember(self, x: Tensor) -> float:
        self.seen.add(len(self.seen))
        return 0.1 * len(self.seen)


@memory("deque of tensors")
class Deque(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.recent: collections.deque[Tensor] = collections.deque(maxlen=3)

    def remember(self, x: Tensor) -> float:
        self.recent.append(x.mean(0) + 0.1 * len(self.recent))
        return float(torch.stack(list(self.recent)).sum())


@memory("queue", copies=False)
class Queue(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.waiting: queue.Queue[float] = queue.Queue()

    def remember(self, x: Tensor) -> float:
        self.waiting.put(float(x.mean()) + 0.1)
        return self.waiting.get() if self.waiting.qsize() > 2 else 0.1 * self.waiting.qsize()

    def look(self) -> Any:
        return self.waiting.queue


@memory("nested containers")
class Nested(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.log = {"layers": [({"means": [], "last": torch.zeros(1)}, SimpleNamespace(n=0))]}

    def remember(self, x: Tensor) -> float:
        inner, count = self.log["layers"][0]
        inner["means"].append(float(x.mean()))
        inner["last"].add_(x.mean().cpu())
        count.n += 1
        return 0.1 * count.n + float(inner["last"])


@memory("subclass of a list")
class Subclass(Memory):
    class Trace(list[float]):
        total = 0.0

        def append(self, value: float) -> None:
            super().append(value)
            self.total += value

    def __init__(self) -> None:
        super().__init__()
        self.trace = Subclass.Trace()

    def remember(self, x: Tensor) -> float:
        self.trace.append(float(x.mean()) + 0.1)
        return self.trace.total


@memory("bytearray")
class Bytes(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.ring = bytearray(4)

    def remember(self, x: Tensor) -> float:
        self.ring[0] += 1
        self.ring.append(self.ring[0])
        return 0.1 * sum(self.ring)


@memory("array")
class Array(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.means = array.array("d", [0.0])

    def remember(self, x: Tensor) -> float:
        self.means[0] += float(x.mean()) + 0.1
        self.means.append(self.means[0])
        return self.means[0]


@memory("user dictionary")
class Wrapped(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.stats = collections.UserDict(calls=0)
        self.chain = collections.ChainMap({}, {"calls": 0})

    def remember(self, x: Tensor) -> float:
        self.stats["calls"] += 1
        self.chain["calls"] += 2
        return 0.1 * (self.stats["calls"] + self.chain["calls"])
