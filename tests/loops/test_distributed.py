"""DistributedDataParallel: the first process measures its own share, and none waits for it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import eqtoolbox as eq

SCRIPT = """
import hashlib, json, sys, warnings
import torch, torch.distributed as dist, torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import eqtoolbox as eq
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.conservation import Conservation

rank, size, store, run_dir = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=size)

def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])

def train(watch):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model = DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    monitor, loss = None, loss_fn
    if watch:
        monitor = eq.attach(model, optimizer, probes=[Curvature(k=1), Conservation()],
                            schedule=1, budget=None, run_dir=run_dir)
        loss = monitor.loss(loss_fn)
    data = torch.Generator().manual_seed(10 + rank)
    seen = []
    for _ in range(4):
        batch = torch.randn(16, 6, generator=data), torch.randint(0, 3, (16,), generator=data)
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        seen.append(value.item())
    if monitor:
        monitor.close()
    state = hashlib.sha256(b"".join(t.numpy().tobytes() for t in inner.state_dict().values()))
    return state.hexdigest(), seen, [p.sum().item() for p in inner.parameters()]

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    watched = train(True)
    alone = train(False)
told = [str(w.message) for w in caught if "eqtoolbox" in str(w.message)]
print(json.dumps({"watched": watched, "alone": alone, "told": told}))
dist.destroy_process_group()
"""


def run(tmp_path: Path, size: int) -> list[dict[str, Any]]:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(r), str(size), str(tmp_path / "store"),
             str(tmp_path / "run")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for r in range(size)
    ]  # fmt: skip
    outputs = [child.communicate(timeout=240) for child in children]
    assert not any(child.returncode for child in children), outputs[0][1]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_train_the_same_with_and_without_and_one_measures(tmp_path: Path) -> None:
    ranks = run(tmp_path, 2)
    for rank in ranks:
        assert rank["watched"] == rank["alone"]
    assert ranks[0]["watched"][2] == ranks[1]["watched"][2], "both hold the same parameters"
    record = eq.Run(tmp_path / "run")
    assert record.info["processes"] == 2
    assert record.series("training/loss")[1] == pytest.approx(ranks[0]["watched"][1], rel=1e-6)
    assert list(record.series("curvature/sharpness")[0]) == [0, 1, 2, 3]
    assert record.series("monitor/closure_grad_cos")[1][0] < 0.99
    assert any("averaged over 2 processes" in told for told in ranks[0]["told"])
    assert ranks[1]["told"] == []


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_one_process_under_ddp_measures_what_trains(tmp_path: Path) -> None:
    (rank,) = run(tmp_path, 1)
    assert rank["watched"] == rank["alone"]
    assert rank["told"] == []
    record = eq.Run(tmp_path / "run")
    assert record.series("monitor/closure_grad_cos")[1] == pytest.approx([1.0], abs=1e-6)
    assert not [r for r in record.records() if r.status == "failed"]
