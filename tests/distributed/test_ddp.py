"""DistributedDataParallel: monitors on all ranks measure the global batch as one process would."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import eqtoolbox as eq
from tests.distributed.ranks import on_ranks, once

KINDS = ("mlp", "resnet", "gpt", "conv")
OF_FIRST = re.compile("equivariance/(orbit_variance|growth|direction_ratio|explained)")
STEPS, LR = 2, 0.05
OF_SHARES = ("vital/", "cost/", "monitor/", "training/loss")  # of the first rank's share


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = x + self.second(x).relu()
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(11, 8), nn.Embedding(5, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.place.weight
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def network(kind: str) -> nn.Module:
    torch.manual_seed(1)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).double()
    if kind == "conv":
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    return {"resnet": Residual, "gpt": Decoder}[kind]().double()


def batch(kind: str, step: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(100 + step)
    y = torch.randint(3, (8,), generator=made)
    if kind == "gpt":
        return torch.randint(11, (8, 5), generator=made), y
    shape = (8, 6) if kind == "mlp" else (8, 1, 6, 6)
    return torch.randn(shape, generator=made).double(), y


def shares(kind: str, step: int) -> list[tuple[Tensor, Tensor]]:
    """Five samples for the first rank, three for the second."""
    x, y = batch(kind, step)
    return [(x[:5], y[:5]), (x[5:], y[5:])]


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def weighted(model: nn.Module, batch: Any) -> Tensor:
    """The same of one call of the model."""
    (x, y), (others, targets) = batch
    outputs = model(torch.cat([x, others])).split([len(x), len(others)])
    losses = map(nn.functional.cross_entropy, outputs, (y, targets))
    return torch.stack([*losses]).mean()


def mean_of_shares(model: nn.Module, batch: Any) -> Tensor:
    return torch.stack([loss_of(model, share) for share in batch]).mean()


def train(kind: str, directory: str, rank: int | None, **options: Any) -> dict[str, Any]:
    """A run by one of two ranks, or by one process on the mean of the shares."""
    model = network(kind)
    seen = model if rank is None else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    given: dict[str, Any] = {"budget": None, "schedule": 1, "exist": "replace", **options}
    monitor = eq.attach(seen, optimizer, run_dir=directory, **given)
    alone = mean_of_shares if kind == "resnet" else weighted  # its statistics are of each share
    loss = monitor.loss(alone if rank is None else loss_of)
    for step in range(STEPS):
        optimizer.zero_grad()
        both = shares(kind, step)
        loss(seen, both if rank is None else both[rank]).backward()
        optimizer.step()
    retired = monitor._world.retired
    monitor.close()
    return {"parameters": [p.detach().numpy() for p in model.parameters()], "retired": retired}


def on_rank(rank: int, where: str) -> dict[str, Any]:
    return {kind: train(kind, f"{where}/{kind}", rank, probes="standard") for kind in KINDS}


def records(directory: Path) -> dict[tuple[int, str], Any]:
    lines = (directory / "records.jsonl").read_text().splitlines()
    return {(r["step"], r["name"]): r for r in map(json.loads, lines)}


def both(here: Path) -> tuple[Path, Path, Any]:
    answers = on_ranks(2, on_rank, str(here / "two"))
    for kind in KINDS:
        train(kind, str(here / "one" / kind), None, probes="standard")
    return here / "two", here / "one", answers


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    return once(tmp_path_factory, "ddp", both)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_that_of_one_process_on_the_mean_of_the_shares(
    runs: Any, kind: str
) -> None:
    two, one, answers = runs
    assert not answers[0][kind]["retired"]
    here, there = records(two / kind), records(one / kind)
    still = {
        name.rpartition("/")[2]
        for (_, name), row in there.items()
        if name.startswith("conservation/step_drift/") and row["value"] < 1e-12
    }
    compared, differ = set(), []
    for (step, name), row in there.items():
        of_rounding = name.startswith("conservation/") and name.rpartition("/")[2] in still
        drawn = kind == "resnet" and name.startswith(("equivariance/", "noether/"))
        skipped = name.startswith(OF_SHARES) or OF_FIRST.search(name)
        if of_rounding or drawn or skipped or row["status"] != "ok":
            continue
        compared.add(name.partition("/")[0])
        mine = here.get((step, name), {"value": None})["value"]
        same = mine is not None and math.isclose(mine, row["value"], rel_tol=1e-5, abs_tol=2e-7)
        if not same:
            differ.append((step, name, row["value"], mine))
    assert compared >= {"conservation", "curvature", "discrete"}, compared
    assert not differ, f"{len(differ)} of {len(there)}: {differ[:40]}"


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_alike_on_all_ranks(runs: Any, kind: str) -> None:
    _, _, (first, second) = runs
    pairs = zip(first[kind]["parameters"], second[kind]["parameters"], strict=True)
    assert all((a == b).all() for a, b in pairs)


def test_the_gradient_of_the_replayed_loss_is_the_one_that_was_averaged(runs: Any) -> None:
    two, _, _ = runs
    for kind in KINDS:
        cosine = records(two / kind)[0, "monitor/closure_grad_cos"]["value"]
        assert cosine > 0.9999


def test_nothing_is_warned_of(runs: Any) -> None:
    two, _, _ = runs
    said = [line for kind in KINDS for line in (two / kind / "events.jsonl").read_text().split()]
    assert not [line for line in said if '"warning"' in line or '"error"' in line]
