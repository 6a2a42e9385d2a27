"""Tensor parallelism, HSDP and one process of FSDP2: a monitor says what one process would."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import eqtoolbox as eq
from tests.distributed.ranks import on_ranks

NAMES = (
    "curvature/sharpness", "curvature/stability", "conservation/drift/rescale",
    "conservation/closure/rescale", "critical/factor", "monitor/closure_grad_cos",
)  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def placed(kind: str) -> nn.Module:
    model = network()
    if kind == "tensor parallel":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    if kind == "copies alone":
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards"))
        return fully_shard(model, mesh=mesh)
    if kind == "HSDP":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
        return fully_shard(model, mesh=mesh)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if kind == "two modules gathered at once":
        fully_shard([model[0], model[2]], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def prepared(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """By Accelerate's FSDP2, which has no way of its own to processors."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Linear"], cpu_ram_efficient_loading=True,
    )  # fmt: skip
    return accelerator.prepare(model, optimizer)


def train(kind: str, watched: bool = True) -> dict[str, Any]:
    """Two steps; `kind` is empty for one process without an engine."""
    model = placed(kind) if kind not in ("", "Accelerate") else network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if kind == "Accelerate":
        model, optimizer = prepared(model, optimizer)
    criterion = nn.CrossEntropyLoss()
    monitor = None
    if watched:
        probes = [eq.probes.Curvature(), eq.probes.Conservation(), eq.probes.CriticalSharpness()]
        monitor = eq.attach(
            model, optimizer, criterion=criterion, probes=probes, schedule=1, budget=None
        )
    made = torch.Generator().manual_seed(6)
    x, y = torch.randn(8, 6, generator=made).double(), torch.randint(3, (8,), generator=made)
    if kind not in ("", "tensor parallel"):
        ranks = dist.get_world_size()
        x, y = x[dist.get_rank() :: ranks], y[dist.get_rank() :: ranks]
    for _ in range(2):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    found: dict[str, Any] = {n: monitor.latest(n) for n in NAMES} if monitor else {}
    found["retired"] = monitor._world.retired if monitor else ""
    if monitor:
        monitor.close()
    held = [getattr(p, "to_local", lambda p=p: p)().detach().numpy() for p in model.parameters()]
    return found | {"held": held}


def on_rank(rank: int, kind: str) -> list[dict[str, Any]]:
    return [train(kind), train(kind, watched=False)]


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [
        ("tensor parallel", 2), ("HSDP", 4), ("copies alone", 2), ("fully_shard", 1),
        ("two modules gathered at once", 2), ("Accelerate", 2),
    ],
)  # fmt: skip
def test_what_is_placed_is_measured_as_what_is_whole(kind: str, ranks: int) -> None:
    pytest.importorskip("accelerate" if kind == "Accelerate" else "torch.distributed")
    answers, alone = on_ranks(ranks, on_rank, kind), train("")
    for watched, plain in answers:
        assert not watched["retired"]
        pairs = zip(watched["held"], plain["held"], strict=True)
        assert all((a == b).all() for a, b in pairs)
    first = answers[0][0]
    assert first["monitor/closure_grad_cos"] > 0.9999
    for name in NAMES[:5]:
        assert first[name] == pytest.approx(alone[name], rel=1e-5, abs=1e-12), name
