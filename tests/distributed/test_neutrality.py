"""Several processes train the same with a monitor on each as without, to the last bit."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from eqtoolbox.world.layout import local
from tests.distributed.ranks import on_ranks, once
from tests.neutrality.features import plain
from tests.neutrality.table import make
from tests.neutrality.watch import SURFACES, Watch, cross_entropy

ENGINES = ("DistributedDataParallel", "fully_shard")
FEW = ("conservation", "tracking")
SEVERAL = ("equivariance", "conservation", "noether", "curvature", "discrete", "tracking")


@dataclass
class Together(Watch):
    """A run of one of several processes."""

    engine: str = ""

    def net(self) -> Any:
        model = super().net()
        if self.engine == "DistributedDataParallel":
            return DistributedDataParallel(model)
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        fully_shard(model.hidden, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def attach(self, model: Any, optimizer: Any, loss: Any = cross_entropy) -> Any:
        """The loss of this process's share of a batch."""
        of, first = super().attach(model, optimizer, loss), torch.distributed.get_rank()
        return lambda model, batch: of(model, tuple(t[first::2] for t in batch))

    def note(self, *things: Any) -> None:
        super().note(*tree_map(lambda x: local(x) if isinstance(x, Tensor) else x, things))


def trails(rank: int) -> dict[tuple[str, str], Any]:
    found = {}
    for engine in ENGINES:
        for surface in SURFACES:
            both = []
            for probes in (None, make(SEVERAL if surface == SURFACES[0] else FEW)):
                run = Together(probes=probes, surface=surface, engine=engine)
                plain(run)
                retired = [m._world.retired for m in run.monitors if m._world.retired]
                run.close()
                both.append(run.trail)
            measured = {r.name.partition("/")[0] for r in run.sink.records if r.status == "ok"}
            found[engine, surface] = both, retired, measured
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return once(tmp_path_factory, "trails", lambda _: on_ranks(2, trails))


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("engine", ENGINES)
def test_processes_train_the_same_with_and_without(found: Any, engine: str, surface: str) -> None:
    for answer in found:
        (alone, watched), retired, _ = answer[engine, surface]
        assert watched == alone
        assert not retired
    measured = found[0][engine, surface][2]
    assert measured >= {"conservation", "tracking"}
    assert found[0][engine, surface][0][0] != found[1][engine, surface][0][0], "ranks differ"
