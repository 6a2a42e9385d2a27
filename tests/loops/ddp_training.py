"""A training under DistributedDataParallel, with and without a monitor: what one process saw."""

import hashlib
import json
import os
import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def train(rank: int, run_dir: str | None) -> dict[str, Any]:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model = DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    monitor, loss_fn = None, cross_entropy
    if run_dir is not None:
        monitor = eq.attach(
            model, optimizer, probes=[Curvature(k=1), Conservation()], schedule=1, budget=None,
            run_dir=run_dir,
        )  # fmt: skip
        loss_fn = monitor.loss(cross_entropy)
    data = torch.Generator().manual_seed(10 + rank)
    losses = []
    for _ in range(4):
        x = torch.randn(16, 6, generator=data)
        batch = x, torch.randint(0, 3, (16,), generator=data)
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if monitor:
        monitor.close()
    state = b"".join(t.numpy().tobytes() for t in inner.state_dict().values())
    weights = b"".join(p.detach().numpy().tobytes() for p in inner.parameters())
    bits = [hashlib.sha256(part).hexdigest() for part in (state, weights)]
    return {"state": bits[0], "weights": bits[1], "losses": losses}


def both(rank: int, size: int, store: str, run_dir: str) -> dict[str, Any]:
    """The training watched and alone, and what eqtoolbox warned of."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            watched, alone = train(rank, run_dir), train(rank, None)
    finally:
        dist.destroy_process_group()
    told = [str(w.message) for w in caught if "eqtoolbox" in str(w.message)]
    return {"watched": watched, "alone": alone, "told": told}


if __name__ == "__main__":
    torch.set_num_threads(1)
    number, size, store, run_dir = sys.argv[1:]
    print(json.dumps(both(int(number), int(size), store, run_dir)), flush=True)
    os._exit(0)  # threads of gloo may abort a process that ends by itself
