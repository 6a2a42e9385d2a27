"""Sharded: small models under FSDP2 and HSDP, next to the same in one process."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from eqtoolbox.replay.gathered import Gathered
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import Objective
from eqtoolbox.world.control import Control
from eqtoolbox.world.layout import local
from eqtoolbox.world.mesh import Mesh
from eqtoolbox.world.placement import placement_of
from eqtoolbox.world.shards import Piece

WORDS, WIDTH, LENGTH, HEADS = 13, 8, 5, 2


class Block(nn.Module):
    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.up, self.down = nn.Linear(WIDTH, 11), nn.Linear(11, WIDTH)  # 11: uneven shards
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        mask = torch.full((LENGTH, LENGTH), -1e9, dtype=x.dtype).triu(1)
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = self.up(self.second(x))
        return x + self.down(y.relu() if self.relu else nn.functional.gelu(y))


class Language(nn.Module):
    """A GPT whose table of words is that of its output, too."""

    def __init__(self, relu: bool = False, again: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block(relu) for _ in range(2))
        self.last, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.out.weight = self.words.weight
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x) + self.places(torch.arange(LENGTH))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.again else block(x)
        return self.out(self.last(x))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 3),
    )  # fmt: skip


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 7), nn.GELU(), nn.Linear(7, 1), nn.Linear(1, 3))


def even() -> nn.Module:
    act = nn.GELU()
    return nn.Sequential(nn.Linear(4, 5), act, nn.Linear(5, 6), act, nn.Linear(6, 3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gelu": lambda: Language(),
    "relu": lambda: Language(relu=True),
    "checkpointed": lambda: Language(again=True),
    "images": images,
    "dense": dense,
    "even": even,
}
SAMPLES = 8


def network(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[kind]().to(dtype)


def batch(kind: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(5)
    if kind == "images":
        return torch.randn(SAMPLES, 2, 6, 6, generator=made).to(dtype), _labels(made, (SAMPLES,), 3)
    if kind in ("dense", "even"):
        return torch.randn(SAMPLES, 4, generator=made).to(dtype), _labels(made, (SAMPLES,), 3)
    words = torch.randint(WORDS, (SAMPLES, LENGTH), generator=made)
    return words, _labels(made, (SAMPLES, LENGTH), WORDS)


def _labels(made: torch.Generator, shape: tuple[int, ...], count: int) -> Tensor:
    return torch.randint(count, shape, generator=made)


def share(whole: tuple[Tensor, Tensor], rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    step = SAMPLES // ranks
    x, y = whole
    return x[rank * step : (rank + 1) * step], y[rank * step : (rank + 1) * step]


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    made = model(batch[0])
    return nn.functional.cross_entropy(made.flatten(0, -2), batch[1].flatten())


def objective(model: nn.Module, batch: Any) -> Objective:
    return Objective(
        model=model,
        loss_fn=loss_of,
        batch=batch,
        random=RandomState.seeded(0),
        buffers={n: local(b).clone() for n, b in model.named_buffers()},
    )


def reference(kind: str, ranks: int, dtype: torch.dtype = torch.float64) -> list[Objective]:
    """One process: the losses of all shares, on a whole model each."""
    whole = batch(kind, dtype)
    return [objective(network(kind, dtype), share(whole, r, ranks)) for r in range(ranks)]


def shard(model: nn.Module, mesh: Any, root: bool = True, **options: Any) -> nn.Module:
    for block in model.blocks if isinstance(model, Language) else []:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options) if root else model


def world_of(model: nn.Module) -> Mesh:
    placement = placement_of(model)
    assert placement is not None
    return Mesh(Control(placement.axes.every, 20.0, {}), placement)


def gathered(kind: str, mesh: Any, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """The sharded model, its world, and the loss of all ranks."""
    model = shard(network(kind, dtype), mesh, **options)
    world = world_of(model)
    own = objective(model, share(batch(kind, dtype), dist.get_rank(), dist.get_world_size()))
    return model, world, Gathered.of(own, world)


def mesh_of(replicas: int = 1) -> Any:
    if replicas == 1:
        return init_device_mesh("cpu", (dist.get_world_size(),))
    shape = (replicas, dist.get_world_size() // replicas)
    return init_device_mesh("cpu", shape, mesh_dim_names=("copies", "shards"))


def pieces(whole: Mapping[str, Tensor], layout: Mapping[str, Piece]) -> dict[str, Tensor]:
    """What a rank holds of a vector."""
    return {
        n: t
        if layout[n].dim is None
        else t.narrow(layout[n].dim, layout[n].start, layout[n].stop - layout[n].start)
        for n, t in whole.items()
    }


def apart(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Relative distance of two vectors."""
    gap = sum(float((a[n].double() - b[n].double()).square().sum()) for n in b)
    return math.sqrt(gap / sum(float(t.double().square().sum()) for t in b.values()))
