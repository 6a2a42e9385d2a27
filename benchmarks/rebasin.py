"""Loss barriers between pairs of trainings, as they stand and aligned, on the digits.

Claims, of four pairs of seeds: aligned, the barrier of MLPs of width 512 is at most 0.05 times the
naive one, lower than that of width 32 or 128; of a residual CNN with batch normalisation
(statistics recomputed at every point) at most 0.15 times in two pairs and 0.25 times in all; of a
one-block vision transformer at most 0.5 times, which is still no single basin: half-way its
accuracy stays far below that of both ends. `act.align` is given 512 samples of the training;
barriers are of the 360 test images.

    python benchmarks/rebasin.py [case ...]
"""

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from environment import store
from timing import begin
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.demos.digits import load_digits

PAIRS = ((0, 1), (2, 3), (0, 2), (1, 3))
SAMPLES = 512


class Residual(nn.Module):
    """Three convolutions with batch normalisation, two of them around skips."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = ((1, width), (width, width), (width, width))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.convs[0](x)))
        for conv, norm in zip(list(self.convs)[1:], list(self.norms)[1:], strict=True):
            x = F.max_pool2d(x, 2)
            x = x + F.relu(norm(conv(x)))
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    """One pre-norm block on 16 patches of 2 x 2."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.patches, self.heads = nn.Linear(4, width), heads
        self.places = nn.Parameter(torch.randn(16, width) * 0.02)
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.f1, self.f2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).reshape(len(x), 16, 4)
        x = self.patches(x) + self.places
        y = self.n1(x)
        q, k, v = (
            m(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v)
        )
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.f2(F.relu(self.f1(self.n2(x))))).mean(1))


def mlp(width: int) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 10),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """An architecture and its training."""

    make: Callable[[], nn.Module]
    steps: int
    adam: bool = False

    def train(self, seed: int) -> nn.Module:
        """From one seed, of weights and of batches."""
        torch.manual_seed(seed)
        model, rng = self.make(), torch.Generator().manual_seed(seed + 100)
        if self.adam:
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
        else:
            optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4)
        images, labels = load_digits().train
        for _ in range(self.steps):
            chosen = torch.randint(len(images), (128,), generator=rng)
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
        return model.eval()


CASES = {
    **{f"MLP {w}": Case(make=lambda w=w: mlp(w), steps=600) for w in (32, 128, 512)},
    "residual CNN 32": Case(make=lambda: Residual(32), steps=120),
    "transformer 64": Case(make=Transformer, steps=500, adam=True),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pair; barriers in nats, accuracies half-way and the lower of the ends."""

    case: str
    pair: tuple[int, int]
    naive: float
    weights: float  # aligned by weights alone
    aligned: float  # by default
    ratio: float
    way: str
    halfway: float  # accuracy, aligned
    naive_halfway: float
    ends: float
    distance: float  # balanced, aligned over before
    change: float
    floor: float
    seconds: float  # of the default alignment, processor time


def row(name: str, case: Case, pair: tuple[int, int]) -> Row:
    """Train both, align the second."""
    data = load_digits()
    reference, model = (case.train(seed) for seed in pair)
    batch = data.train[0][:SAMPLES], data.train[1][:SAMPLES]

    def barrier(other: nn.Module) -> eq.act.path.Barrier:
        return eq.act.barrier(reference, other, tuple(data.test), recompute=tuple(data.train))

    naive = barrier(model)
    by_weights = copy.deepcopy(model)
    eq.act.align(by_weights, reference, batch, by="weights")
    start = time.process_time()
    found = eq.act.align(model, reference, batch)
    seconds = time.process_time() - start
    aligned = barrier(model)
    assert naive.accuracies is not None
    assert aligned.accuracies is not None
    middle = len(naive.at) // 2
    return Row(
        case=name,
        pair=pair,
        naive=naive.barrier,
        weights=barrier(by_weights).barrier,
        aligned=aligned.barrier,
        ratio=aligned.barrier / naive.barrier,
        way=found.way,
        halfway=aligned.accuracies[middle],
        naive_halfway=naive.accuracies[middle],
        ends=min(naive.accuracies[0], naive.accuracies[-1]),
        distance=found.balanced_after / found.balanced_before,
        change=found.change,
        floor=found.floor,
        seconds=seconds,
    )


def main() -> None:
    """Print every pair as it is done, and store all of them."""
    begin()
    rows = []
    for name in sys.argv[1:] or CASES:
        for pair in PAIRS:
            found = row(name, CASES[name], pair)
            rows.append(asdict(found))
            print(
                f"{name:16} {pair}  naive {found.naive:.3f}  weights {found.weights:.3f}  "
                f"aligned {found.aligned:.3f}  ratio {found.ratio:.3f}  half-way "
                f"{found.naive_halfway:.3f} -> {found.halfway:.3f}  ends {found.ends:.3f}  "
                f"{found.seconds:.1f} s  {found.way}",
                flush=True,
            )
    if not sys.argv[1:]:
        store("rebasin", rows)


if __name__ == "__main__":
    main()
