"""FSDP2 over NCCL with one rank: gathered weights in memory that CUDA's allocator gives out anew.

A saved tensor is known by its storage; the allocator gives freed storages out anew, so that a
pointer alone would take one weight for another.
"""

import os
import socket
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import eqtoolbox as eq
from eqtoolbox.linalg import hessian
from eqtoolbox.linalg.vectors import random_like


@pytest.fixture
def alone(device: str) -> Iterator[str]:
    """A device with a process group of one rank."""
    if device != "cpu" and not dist.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    backend = "gloo" if device == "cpu" else "cuda:nccl,cpu:gloo"
    dist.init_process_group(backend, rank=0, world_size=1)
    yield device
    dist.destroy_process_group()


def network(device: str) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(6)]
    return nn.Sequential(*blocks, nn.Linear(64, 5)).to(device)


def test_products_of_shards_are_those_of_the_whole_model(alone: str) -> None:
    x, y = torch.randn(32, 64, device=alone), torch.randint(5, (32,), device=alone)
    whole = network(alone)
    params = {n: p.detach() for n, p in whole.named_parameters()}
    call = lambda p: nn.functional.cross_entropy(torch.func.functional_call(whole, p, (x,)), y)
    exact = hessian(call, params)
    mesh = init_device_mesh(alone, (1,))
    model = network(alone)
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    criterion, seen = nn.CrossEntropyLoss(), []

    class Compared(eq.Probe):  # type: ignore[misc]
        name, headline, mode, sharded = "compared", "error", "train", True

        def measure(self, snapshot, reference, rng):  # type: ignore[no-untyped-def]
            product = hessian(snapshot.objective, snapshot.before, retain=True)
            for seed in range(4):
                v = random_like(params, torch.Generator().manual_seed(seed))
                want, got = exact(v), product({n: x.clone() for n, x in v.items()})
                off = sum(float((got[n] - want[n]).square().sum()) for n in want)
                seen.append((off / sum(float(w.square().sum()) for w in want.values())) ** 0.5)
                junk = [torch.randn(64, 64, device=alone) for _ in range(20)]  # memory comes again
                del junk
            yield from ()

    with eq.attach(model, optimizer, criterion=criterion, probes=[Compared()], budget=None):
        criterion(model(x), y).backward()
        optimizer.step()
    assert len(seen) == 4 and max(seen) < 1e-5
