"""Claim: what is traced is analysed in time that no width changes, linear in depth.

Trace and analysis of transformers without weights (`meta`), interleaved; medians, and ratios of the
medians. Nothing is verified here.

    python benchmarks/search_shapes.py
"""

import gc
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from environment import store
from torch import Tensor, nn
from torch.func import functional_call

from eqtoolbox.weights.search.members import members
from eqtoolbox.weights.tracing.trace import trace

ROUNDS = 7
Seconds = tuple[float, float]  # of the processor: trace, analysis of scales, signs and permutations


class Layer(nn.Module):
    """Attention by hand (no fused kernel runs on meta) and a perceptron, on a residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.qkv(self.n1(x)).split(width, -1)
        q, k, v = (z.view(batch, length, self.heads, -1).transpose(1, 2) for z in split)
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        scores = (q @ k.transpose(-1, -2)).masked_fill(future, -torch.inf).softmax(-1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.n2(x))))


class Language(nn.Module):
    """Tokens to tokens, the table as the head."""

    def __init__(self, depth: int, width: int, heads: int, tokens: int = 500) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width)
        self.places = nn.Parameter(torch.empty(16, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.layers(self.table(tokens) + self.places)
        return self.norm(x) @ self.table.weight.T


def posed(depth: int, width: int, heads: int = 8) -> Callable[[], Seconds]:
    """Seconds of one trace, and of its analysis."""
    with torch.device("meta"):
        model = Language(depth, width, heads)
        tokens = torch.zeros(2, 16, dtype=torch.long)
    params = dict(model.named_parameters())

    def run(given: dict[str, Tensor]) -> tuple[None, Tensor]:
        outputs = functional_call(model, given, (tokens,))
        return None, F.cross_entropy(outputs.flatten(0, 1), tokens.flatten())

    def once() -> Seconds:
        start = time.process_time()
        found = trace(run, params)
        traced = time.process_time()
        for mode in ("scale", "sign", "label"):
            members(found, mode)
        return traced - start, time.process_time() - traced

    return once


def compared(*cases: Callable[[], Seconds]) -> list[Seconds]:
    """Medians of interleaved rounds."""
    gc.disable()  # a full collection of all that torch imports takes longer than what is timed
    rounds = [[case() for case in cases] for _ in range(ROUNDS)]
    gc.enable()
    columns = [list(zip(*own, strict=True)) for own in zip(*rounds, strict=True)]
    return [(statistics.median(a), statistics.median(b)) for a, b in columns]


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = {}
    for name, cases in {
        "width 4096 over 256, 2 layers": (posed(2, 256), posed(2, 4096)),
        "24 over 12 layers, width 768": (posed(12, 768, 12), posed(24, 768, 12)),
    }.items():
        one, two = compared(*cases)
        results[name] = {
            "ratio": round(sum(two) / sum(one), 2),
            "ratio_of_analysis": round(two[1] / one[1], 2),
            "seconds": [[round(s, 3) for s in one], [round(s, 3) for s in two]],
        }
        print(name, results[name])
    print(store("search_shapes", results))


if __name__ == "__main__":
    main()
