"""Engines that cannot be looked into are refused at attach, by name, with what still works."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import eqtoolbox as eq
from tests.conftest import mlp


def attach(model: Any, optimizer: Any = None) -> eq.Monitor:
    return eq.attach(model, optimizer or torch.optim.SGD(model.parameters(), lr=0.1))


def stand_in(name: str, base: type = object, **members: Any) -> type:
    """A class of DeepSpeed, which needs a compiler and a GPU to be installed."""
    return type(name, (base,), {"__module__": "deepspeed.runtime.engine", **members})


def test_a_deepspeed_engine_is_refused() -> None:
    engine = stand_in("DeepSpeedEngine", nn.Module)()
    engine.module = mlp(2, 2)
    with pytest.raises(TypeError, match=r"DeepSpeed.*DistributedDataParallel"):
        attach(engine)


def test_a_deepspeed_optimizer_is_refused_although_it_holds_a_torch_one() -> None:
    model = mlp(2, 2)
    wrapper = stand_in("DeepSpeedZeroOptimizer")()
    wrapper.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"DeepSpeedZeroOptimizer.*DistributedDataParallel"):
        attach(model, wrapper)


@pytest.mark.parametrize("mark", ["ds_id", "ds_status"])
def test_a_parameter_partitioned_by_zero_is_refused(mark: str) -> None:
    model = mlp(2, 3, 2)
    setattr(model[2].weight, mark, 0)
    with pytest.raises(TypeError, match=r"2\.weight.*DistributedDataParallel"):
        attach(model)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One process that believes to be several."""
    store = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_fully_sharded_parameters_are_not_refused(mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    attach(fully_shard(mlp(4, 4, 2), mesh=mesh)).close()


@pytest.mark.filterwarnings("ignore")
def test_tensor_parallel_parameters_are_not_refused(mesh: Any) -> None:
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    attach(parallelize_module(mlp(4, 4, 2), mesh, {"0": ColwiseParallel()})).close()


@pytest.mark.filterwarnings("ignore")
def test_flat_sharded_modules_are_refused(mesh: Any) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(mlp(4, 4, 2), device_id=torch.device("cpu"))
    with pytest.raises(TypeError, match=r"FullyShardedDataParallel.*DistributedDataParallel"):
        attach(model)


def test_a_wrapped_optimizer_without_an_inner_one_is_refused() -> None:
    class Dummy:
        def step(self) -> None: ...

    with pytest.raises(TypeError, match=r"wrapper that holds one as .optimizer, got Dummy"):
        attach(mlp(2, 2), Dummy())


def test_plain_models_are_not_refused(tmp_path: Path) -> None:
    attach(mlp(2, 2)).close()
