"""Stateful losses: objects and functions that keep averages, queues, metrics and generators."""

import collections
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.neutrality.random_loops.losses import Batch, cross_entropy, loss


def stateful(name: str, **known: Any) -> Callable[[Any], Any]:
    return loss(name, remembers=True, **known)


class Own:
    """A loss object; `__call__` of the kinds below weighs the cross entropy by what they know."""

    def __init__(self, model: nn.Module) -> None:
        self.start()

    def start(self) -> None:
        raise NotImplementedError

    def weight(self, value: Tensor) -> Any:
        """Take the loss in, and give the factor of this call."""
        raise NotImplementedError

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        value = cross_entropy(model, batch)
        return value * self.weight(value.detach().float())


@stateful("average in a tensor")
class Average(Own):
    def start(self) -> None:
        self.average = torch.ones(())

    def weight(self, value: Tensor) -> Any:
        self.average = 0.9 * self.average + 0.1 * value
        return 1 / (1 + self.average)


@stateful("average in place")
class InPlace(Average):
    def weight(self, value: Tensor) -> Any:
        self.average.mul_(0.9).add_(value, alpha=0.1)
        return 1 / (1 + float(self.average))


@stateful("counter")
class Counter(Own):
    def start(self) -> None:
        self.calls, self.history = 0, []

    def weight(self, value: Tensor) -> Any:
        self.calls += 1
        self.history.append(float(value))
        return 1 + 0.1 * self.calls


@stateful("moments in NumPy")
class Moments(Own):
    def start(self) -> None:
        self.moments = np.ones(2)

    def weight(self, value: Tensor) -> Any:
        self.moments += 0.1 * np.array([float(value), float(value) ** 2])
        return float(1 / self.moments.sum())


@stateful("logs in dictionaries")
class Logs(Own):
    def start(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, float] = collections.defaultdict(lambda: float("inf"))

    def weight(self, value: Tensor) -> Any:
        self.rows.append({"step": len(self.rows), "loss": value.clone()})
        self.best["loss"] = min(self.best["loss"], float(value))
        return 1 + 0.1 * len(self.rows) + 0.01 * self.best["loss"]


@stateful("losses with their graph")
class Graphs(Own):
    def start(self) -> None:
        self.kept: list[Tensor] = []

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        value = cross_entropy(model, batch)
        self.kept.append(value)
        return value * (1 + 0.1 * len(self.kept))


@stateful("generator of its own")
class Generator(Own):
    def start(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def weight(self, value: Tensor) -> Any:
        return 1 + 0.1 * torch.rand(1, generator=self.generator).item()


@stateful("generators of NumPy and Python")
class Generators(Own):
    def start(self) -> None:
        self.sources = {"numpy": np.random.default_rng(5), "python": random.Random(5)}

    def weight(self, value: Tensor) -> Any:
        return 1 + 0.1 * self.sources["numpy"].random() + 0.1 * self.sources["python"].random()


@stateful("schedule in an iterator")
class Scheduled(Own):
    def start(self) -> None:
        self.weights = itertools.count(1)

    def weight(self, value: Tensor) -> Any:
        return 1 + 0.1 * next(self.weights)


@stateful("second loader", refused="batches|DataLoader|generator")
class SecondLoader(Own):
    """Takes unlabelled data from a loader of its own, which starts anew at its end."""

    def start(self) -> None:
        self.data = DataLoader([0.1 * i for i in range(4)], batch_size=1)
        self.batches = iter(self.data)

    def weight(self, value: Tensor) -> Any:
        try:
            extra = next(self.batches)
        except StopIteration:
            self.batches = iter(self.data)
            extra = next(self.batches)
        return 1 + float(extra)


@stateful("second batch from a generator", refused="batches|generator")
class SecondBatch(Own):
    def start(self) -> None:
        self.batches = self.shifts()

    def shifts(self) -> Iterator[float]:
        for i in range(10_000):
            yield 0.1 * i

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, (batch[0] + next(self.batches), batch[1]))


@stateful("closure")
def closure(model: nn.Module) -> Any:
    calls, seen = 0, []

    def weighed(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        seen.append(calls)
        return cross_entropy(model, batch) * (1 + 0.1 * calls)

    return weighed


@stateful("default argument")
def default(model: nn.Module) -> Any:
    def weighed(model: nn.Module, batch: Batch, seen: list[int] = []) -> Tensor:  # noqa: B006
        seen.append(len(seen))
        return cross_entropy(model, batch) * (1 + 0.1 * len(seen))

    return weighed


class Metric(nn.Module):
    """Accuracy so far, as metric libraries keep it: a count, sums and a list of predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.updates, self.cache = 0, None
        self.correct, self.total = torch.tensor(0), torch.tensor(0)
        self.predicted: list[Tensor] = []

    def update(self, output: Tensor, target: Tensor) -> None:
        self.updates, self.cache = self.updates + 1, None
        predicted = output.argmax(-1)
        self.correct += (predicted == target).sum()
        self.total = self.total + len(target)
        self.predicted.append(predicted)

    def compute(self) -> float:
        if self.cache is None:
            self.cache = float(self.correct / self.total) + 0.01 * len(self.predicted)
        return self.cache


@stateful("metric")
class Measured:
    def __init__(self, model: nn.Module) -> None:
        self.metric = Metric()

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        output = model(batch[0])
        self.metric.update(output.detach(), batch[1])
        return F.cross_entropy(output, batch[1]) * (1 + 0.1 * self.metric.compute())


@stateful("memory bank")
class Bank:
    """Outputs of earlier samples in a ring that is written in place."""

    def __init__(self, model: nn.Module) -> None:
        self.bank, self.at = torch.zeros(8, 3), 0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        output = model(batch[0])
        near = (output.float() @ self.bank.clone().T).mean()
        rows = torch.arange(self.at, self.at + len(output)) % len(self.bank)
        self.bank[rows] = output.detach().float()
        self.at = int(rows[-1]) + 1
        return F.cross_entropy(output, batch[1]) + 0.1 * near


@stateful("queue of outputs")
class Queue:
    def __init__(self, model: nn.Module) -> None:
        self.queue: collections.deque[Tensor] = collections.deque(maxlen=3)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        output = model(batch[0])
        self.queue.append(output.detach().float().mean(0))
        earlier = torch.stack([*self.queue]).mean(0)
        return F.cross_entropy(output, batch[1]) + F.mse_loss(output.float().mean(0), earlier)


@stateful("criterion with an average", criterion=True)
class Averaging(nn.Module):
    """A criterion that keeps floats, a plain tensor and a list."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.average, self.last, self.seen = 1.0, torch.zeros(()), []

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        value = F.cross_entropy(output, target)
        self.average = 0.9 * self.average + 0.1 * float(value.detach())
        self.last.copy_(value.detach())
        self.seen.append(self.average)
        return value / (1 + self.average + 0.01 * len(self.seen))


@stateful("criterion with a closure", criterion=True)
class Counting(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weight = default(model).__defaults__[0]

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.weight.append(1)
        return F.cross_entropy(output, target) * (1 + 0.1 * len(self.weight))
