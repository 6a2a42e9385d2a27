"""Claim: all symmetries of a 12-layer GPT-2 in 60 s and 4 times the model's memory, on two cores.

Time and peak resident memory of `discover`, each model in a process of its own. The memory is the
process's peak less what it held before the model was built, as a multiple of the parameters.

    python benchmarks/discovery.py
"""

import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import store
from torch import Tensor, nn

import eqtoolbox as eq

MIB = 2**20


class Residual(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a skip, projected where shapes change."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.skip: nn.Module = nn.Identity()
        if before != after:
            self.skip = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.skip(x))


def resnet() -> tuple[nn.Module, Any]:
    """ResNet-14 for images of 32 pixels, 16 to 64 channels."""
    widths = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        *(Residual(*w) for w in widths), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    return model, (torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,)))


def mlp() -> tuple[nn.Module, Any]:
    """784-512-512-10 with ReLU."""
    layers = (nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return nn.Sequential(*layers), (torch.randn(32, 784), torch.randint(0, 10, (32,)))


def gpt2() -> tuple[nn.Module, Any]:
    """transformers' GPT-2 of 124 M parameters, random, on 16 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = torch.randint(0, 50257, (1, 16))
    model = GPT2LMHeadModel(GPT2Config(loss_type="ForCausalLM")).eval()
    return model, {"input_ids": tokens, "labels": tokens}


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "mlp": mlp, "resnet": resnet, "gpt2": gpt2,
}  # fmt: skip


def measure(name: str) -> dict[str, Any]:
    """Seconds, peak memory and dimensions of one model, in this process."""
    import scipy.sparse.linalg  # noqa: F401  what discovery brings, before the baseline

    if name == "gpt2":
        import transformers.models.gpt2.modeling_gpt2  # noqa: F401

    torch.manual_seed(0)
    before = _peak()
    model, batch = MODELS[name]()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    start, used = time.perf_counter(), time.process_time()
    found = eq.weights.discover(model, batch)
    seconds, processor = time.perf_counter() - start, time.process_time() - used
    dimensions: Counter[str] = Counter()
    for symmetry in found:
        dimensions[f"{symmetry.family} ({symmetry.status})"] += symmetry.dimension
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "peak_over_model": round((_peak() - before) / size, 2),
        "peak_mib": round(_peak() / MIB),
        "worst_verified_residual": max(s.residual for s in found if s.status == "verified"),
        "dimensions": dict(dimensions),
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    results = {}
    for name in MODELS:
        command = [sys.executable, str(Path(__file__)), name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[name] = json.loads(output.splitlines()[-1])
        print(name, results[name])
    print(store("discovery", results))


if __name__ == "__main__":
    main()
