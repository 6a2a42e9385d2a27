"""Claim: what a search costs beside its propagation is linear in depth and small in memory.

Seconds of `discover` and what of them goes where, each model in a process of its own; ratios of
depths are medians of interleaved runs in one process. Memory is the process's peak less what it
held before the search, as a multiple of the parameters.

    python benchmarks/verification.py [model]
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from environment import store
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.weights.search import find

MIB = 2**20
REPEATS = 3


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch normalisation around a skip."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.main = nn.Sequential(
            nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.skip: nn.Module = nn.Identity()
        if before != after or stride > 1:
            convolution = nn.Conv2d(before, after, 1, stride, bias=False)
            self.skip = nn.Sequential(convolution, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.skip(x))


def resnet(counts: tuple[int, ...], first: int = 64) -> tuple[nn.Module, Any]:
    """A ResNet of bottlenecks, (3, 4, 23, 3) for 101 layers, on images of 64 pixels."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, first, 7, 2, 3, bias=False), nn.BatchNorm2d(first), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    before = first
    for stage, count in enumerate(counts):
        width = first * 2**stage
        for block in range(count):
            layers.append(Bottleneck(before, width, 2 if stage and not block else 1))
            before = 4 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)]
    return nn.Sequential(*layers), (torch.randn(4, 3, 64, 64), torch.arange(4))


class Block(nn.Module):
    """Attention and a GELU layer of four times the width, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.before(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.after(x))))


class Transformer(nn.Module):
    """A GPT with a head of its own."""

    def __init__(self, depth: int, width: int, tokens: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(tokens, width), nn.Embedding(64, width)
        self.blocks = nn.Sequential(*(Block(width, max(1, width // 64)) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def gpt(depth: int, width: int, tokens: int = 512) -> tuple[nn.Module, Any]:
    """On one sequence of 16 tokens."""
    drawn = torch.randint(0, tokens, (2, 1, 16))
    return Transformer(depth, width, tokens), (drawn[0], drawn[1])


def mlp() -> tuple[nn.Module, Any]:
    """A toy: 8-16-16-3 with ReLU."""
    layers = (nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    return nn.Sequential(*layers), (torch.randn(32, 8), torch.randint(0, 3, (32,)))


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "mlp": mlp,
    "gpt, 2 layers of 32": lambda: gpt(2, 32, 64),
    "gpt, 12 layers of 128": lambda: gpt(12, 128),
    "resnet-26, width 16": lambda: resnet((2, 2, 2, 2), 16),
    "resnet-101": lambda: resnet((3, 4, 23, 3)),
    "gpt, 12 layers of 768": lambda: gpt(12, 768, 50257),
}


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds inside the propagation, all callers together, while the scope is open."""
    spent = {"propagation": 0.0}

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            made = function(*args, **kwargs)
            spent["propagation"] += time.perf_counter() - started
            return made

        return called

    discrete = sys.modules["eqtoolbox.weights.search.discrete"]
    with (
        mock.patch.object(find, "members", around(find.members)),
        mock.patch.object(discrete, "members", around(discrete.members)),  # type: ignore[attr-defined]
    ):
        yield spent


def measure(name: str) -> dict[str, Any]:
    """Seconds and peak memory of one model, in this process."""
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    before = _peak()
    with timed() as spent:
        start = time.perf_counter()
        found = eq.weights.discover(model, batch)
        seconds = time.perf_counter() - start
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 2),
        "beside_the_propagation": round(seconds - spent["propagation"], 2),
        "peak_over_model": round((_peak() - before) / size, 2),
        "peak_mib": round((_peak() - before) / MIB),
        "dimensions": sum(s.dimension for s in found if s.status != "broken"),
        "worst_verified_residual": max(s.residual for s in found if s.status == "verified"),
    }


def ratio(more: int, less: int) -> dict[str, Any]:
    """How much longer a network twice as deep takes, beside the propagation: medians."""
    torch.manual_seed(0)
    models = {depth: gpt(depth, 128) for depth in (less, more)}
    seconds: dict[int, list[float]] = {less: [], more: []}
    for _ in range(REPEATS):
        for depth, (model, batch) in models.items():
            with timed() as spent:
                start = time.perf_counter()
                eq.weights.discover(model, batch)
                seconds[depth].append(time.perf_counter() - start - spent["propagation"])
    medians = {depth: statistics.median(of) for depth, of in seconds.items()}
    return {"seconds": medians, "ratio": round(medians[more] / medians[less], 2)}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        made = ratio(24, 12) if sys.argv[1] == "depth" else measure(sys.argv[1])
        print(json.dumps(made))
        return
    results = {}
    for name in [*MODELS, "depth"]:
        command = [sys.executable, str(Path(__file__)), name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[name] = json.loads(output.splitlines()[-1])
        print(name, results[name])
    print(store("verification", results))


if __name__ == "__main__":
    main()
