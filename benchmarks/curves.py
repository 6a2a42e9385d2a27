"""Curves of a run with default settings: points of everything, and what they cost.

Claim: after 400 to 1,500 steps of a small network each of sharpness, laws and drifts has ten points
or more, spread evenly; no step takes more than 1.5 s, the monitor takes 5 % of training time and
15 s, and the first run of everything 60 steps and 2 s.

A run with and one without the monitor are told apart step by step: what the monitor adds is the sum
of its steps' times over that of the others' median. `gap` is the longest stretch of the run without
a point, as a share of it, and `points` the number of steps with one, both of the poorest quantity
of each kind.

    python benchmarks/curves.py [steps] [networks ...]
"""

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from curvature_models import GPT, digits, resnet, text
from environment import store
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.sinks.memory import MemorySink

STEPS = 600
Batch = tuple[Tensor, Tensor]
Task = tuple[nn.Module, torch.optim.Optimizer, Callable[[], Batch]]


def images(size: int, channels: int, batch: int) -> Callable[[], Batch]:
    data = digits(size, channels)

    def draw() -> Batch:
        chosen = torch.randint(len(data[0]), (batch,))
        return data[0][chosen], data[1][chosen]

    return draw


def windows(batch: int, context: int) -> Callable[[], Batch]:
    tokens = text()

    def draw() -> Batch:
        starts = torch.randint(len(tokens) - context - 1, (batch, 1))
        found = tokens[starts + torch.arange(context + 1)]
        return found[:, :-1], found[:, 1:]

    return draw


def mlp() -> Task:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    model.append(nn.Linear(64, 10))
    return model, torch.optim.SGD(model.parameters(), lr=0.1), images(8, 1, 128)


def cnn() -> Task:
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    model.extend([nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)])
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), images(8, 1, 128)


def residual() -> Task:
    model = resnet(12, statistics=True)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), images(16, 3, 32)


def gpt() -> Task:
    model = GPT(64, 2, 4, 64)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3), windows(16, 64)


class Recurrent(nn.Module):
    """An LSTM over the rows of images."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.head = nn.LSTM(16, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.core(x.flatten(0, 1))[0][:, -1])
        return out


def lstm() -> Task:
    model = Recurrent()
    return model, torch.optim.Adam(model.parameters(), lr=1e-3), images(16, 1, 64)


def vgg() -> Task:
    model, before = nn.Sequential(), 3
    for width in (32, 64, 128):
        for _ in range(2):
            model.extend([nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()])
            before = width
        model.append(nn.MaxPool2d(2))
    model.extend([nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10)])
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), images(16, 3, 32)


class Patches(nn.Module):
    """A vision transformer of four layers over patches of 2 x 2, with a class token."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 2, 2)
        self.place = nn.Parameter(0.02 * torch.randn(1, 65, width))
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.core = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.place
        out: Tensor = self.head(self.norm(self.core(tokens))[:, 0])
        return out


def vit() -> Task:
    model = Patches()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3), images(16, 3, 32)


NETWORKS: dict[str, Callable[[], Task]] = {
    "mlp": mlp,
    "cnn": cnn,
    "lstm": lstm,
    "resnet": residual,
    "gpt": gpt,
    "vgg": vgg,
    "vit": vit,
}


def trained(name: str, count: int, watched: bool, **options: Any) -> tuple[list[float], MemorySink]:
    """Seconds of every step, and the records."""
    torch.manual_seed(0)
    model, optimizer, draw = NETWORKS[name]()
    sink, times = MemorySink(), []

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    with tempfile.TemporaryDirectory() as folder:
        monitor = None
        if watched:
            monitor = eq.attach(model, optimizer, run_dir=f"{folder}/run", sinks=[sink], **options)
        step_loss = monitor.loss(loss_fn) if monitor else loss_fn
        for _ in range(count):
            batch, started = draw(), time.perf_counter()
            optimizer.zero_grad()
            step_loss(model, batch).backward()
            optimizer.step()
            times.append(time.perf_counter() - started)
        if monitor:
            monitor.close()
    return times, sink


def kind(name: str) -> str | None:
    """Which of the three questions a record's quantity answers."""
    if name in ("curvature/sharpness", "tracking/sharpness"):
        return "sharpness"
    if name.startswith(("noether/first_order/", "noether/second_order/", "noether/zeroth_order/")):
        return "laws"
    return "drifts" if name.startswith("conservation/drift/") else None


def points(sink: MemorySink, steps: int) -> Iterator[tuple[str, int, float]]:
    """Kind, points and longest gap of every curve."""
    found: dict[str, set[int]] = defaultdict(set)
    for record in sink.records:
        if kind(record.name) and record.status in ("ok", "not_converged"):
            name = "sharpness" if record.name.endswith("/sharpness") else record.name
            found[name].add(record.step)
    for name, at in found.items():
        edges = [0, *sorted(at), steps]
        gap = max(b - a for a, b in pairwise(edges)) / steps
        yield kind(name) or "sharpness", len(at), gap


def measured(name: str, steps: int, **options: Any) -> dict[str, Any]:
    """What one network's curves are and cost."""
    alone, _ = trained(name, steps, watched=False)
    times, sink = trained(name, steps, watched=True, **options)
    step = statistics.median(alone)
    row: dict[str, Any] = {"step_ms": 1e3 * step, "slowest_s": max(times)}
    row["extra_s"] = sum(times) - sum(alone)
    row["allowed_s"] = 0.05 * sum(alone) + 15
    row["setup_s"] = [r.value for r in sink.records if r.name == "cost/setup"][-1]
    row["setup_allowed_s"] = 60 * step + 2
    worst: dict[str, tuple[int, float]] = {}
    for of, count, gap in points(sink, steps):
        fewest, widest = worst.get(of, (count, gap))
        worst[of] = (min(fewest, count), max(widest, gap))
    for of, (count, gap) in worst.items():
        row[of] = {"points": count, "gap": round(gap, 3)}
    return row


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    results = {}
    for name in sys.argv[2:] or NETWORKS:
        results[name] = measured(name, steps)
        print(name, results[name], flush=True)
    if not sys.argv[2:]:
        print(store("curves", {"steps": steps, **results}))


if __name__ == "__main__":
    main()
