"""Claim: a search with its verification takes few evaluations, and one float64 copy of the model.

Seconds of the processor of `discover`, each model in a process of its own: of the first call, with
all that it imports, and the median of later ones on other weights. Memory is the peak of the first
call less what the process held before it, as a multiple of the parameters. Llama is on meta, and
only proposed. The ratio of depths is that of medians of interleaved runs.

    python benchmarks/verification.py [model]
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from discovery import gpt2
from environment import store
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.demos.digits import DigitNet

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


def digits() -> tuple[nn.Module, Any]:
    """A small convolutional net, on 32 images."""
    return DigitNet(), (torch.randn(32, 1, 8, 8), torch.arange(32) % 10)


def llama() -> tuple[nn.Module, Any]:
    """The shape of Llama-2 7B, without weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = torch.randint(0, 32000, (1, 16))
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())
    return model, {"input_ids": tokens, "labels": tokens}


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "DigitNet": digits,
    "gpt, 2 layers of 32": lambda: gpt(2, 32, 64),
    "GPT-2": gpt2,
    "gpt, 12 layers of 768": lambda: gpt(12, 768, 50257),
    "resnet-101": lambda: resnet((3, 4, 23, 3)),
    "Llama 7B on meta": llama,
}


def measure(name: str) -> dict[str, Any]:
    """Seconds and peak memory of one model, in this process."""
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    meta = any(p.is_meta for p in model.parameters())
    parameters = sum(p.numel() for p in model.parameters())
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    first, found = _searched(model, batch, not meta)
    peak = _status("VmHWM") - before
    later = []
    for seed in range(1, REPEATS + 1):
        torch.manual_seed(seed)
        del model, batch
        model, batch = MODELS[name]()
        later.append(_searched(model, batch, not meta)[0])
    verified = [s.residual for s in found if s.status == "verified"]
    return {
        "parameters": parameters,
        "cpu_seconds_first": round(first, 2),
        "cpu_seconds_later": round(statistics.median(later), 3),
        "peak_mib": round(peak / MIB),
        "models_held": None if meta else round(peak / size, 2),
        "dimensions": sum(s.dimension for s in found if s.status != "broken"),
        "worst_verified_residual": max(verified, default=None),
    }


def ratio(more: int, less: int) -> dict[str, Any]:
    """How much longer a network twice as deep takes, both too large to be kept whole: medians."""
    torch.manual_seed(0)
    models = {depth: gpt(depth, 192) for depth in (less, more)}
    rounds = [
        {depth: _searched(*posed, True)[0] for depth, posed in models.items()}
        for _ in range(REPEATS + 1)
    ][1:]
    medians = {depth: round(statistics.median(r[depth] for r in rounds), 2) for depth in models}
    return {"cpu_seconds": medians, "ratio": round(medians[more] / medians[less], 2)}


def _searched(model: nn.Module, batch: Any, verify: bool) -> tuple[float, Any]:
    start = time.process_time()
    found = eq.weights.discover(model, batch, verify=verify)
    return time.process_time() - start, found


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


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
