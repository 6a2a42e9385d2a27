"""A model sharded by torch's own engine over real processes, beside the same one held whole."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from eqtoolbox.weights.charges.change import Rates
from eqtoolbox.weights.charges.charges import Charges
from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search.found import Found
from eqtoolbox.weights.search.parted import Shown, find_parted, general
from eqtoolbox.world.layout import layout_of, local
from eqtoolbox.world.shards import ALONE, Shards
from eqtoolbox.world.swap import swap
from tests.distributed.networks import cross_entropy, language, pictures

Params = dict[str, Tensor]
RATE, DECAY = 0.05, 0.01


class Collectives(TorchDispatchMode):
    """What ranks tell each other, by its name, whoever asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = func._schema.name.partition("::")
        if "c10d" in space:
            self.calls[name.rstrip("_")] += 1
        return func(*args, **(kwargs or {}))


class Sharded:
    """One network under FSDP2, over all ranks or in replicas, with its share of the batch."""

    def __init__(
        self, make: Callable[[], tuple[nn.Module, Tensor, Tensor]], mesh: DeviceMesh
    ) -> None:
        whole, inputs, targets = make()
        self.whole, self.inputs, self.targets = whole.double(), inputs, targets
        if inputs.is_floating_point():
            self.inputs = inputs.double()
        self.model = make()[0].double()
        for part in getattr(self.model, "blocks", ()):
            fully_shard(part, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        size = len(inputs) // dist.get_world_size()
        self.own = slice(dist.get_rank() * size, (dist.get_rank() + 1) * size)
        self.params = dict(self.model.named_parameters())
        self.shards = shards_of(self.params, mesh)

    def here(self) -> Params:
        """What this rank holds, where it lies."""
        return {n: local(p) for n, p in self.params.items()}

    def step(self) -> tuple[Params, Params, Params]:
        """Before, after and gradient of one step of SGD, what is held here."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE, weight_decay=DECAY)
        cross_entropy(self.model(self.inputs[self.own]), self.targets[self.own]).backward()
        before = {n: p.clone() for n, p in self.here().items()}
        gradient = {n: local(p.grad).clone() for n, p in self.params.items()}  # type: ignore[arg-type]
        optimizer.step()
        return before, {n: p.clone() for n, p in self.here().items()}, gradient

    def step_of_the_whole(self) -> tuple[Params, Params, Params]:
        """The same of the whole model in one process, whose loss is the mean of the shares'."""
        params = {n: p.detach() for n, p in self.whole.named_parameters()}
        leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
        loss = self._mean(leaves)
        found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        gradient = dict(zip(params, found, strict=True))
        moved = {n: p - RATE * (gradient[n] + DECAY * p) for n, p in params.items()}
        return params, moved, gradient

    def _mean(self, params: Params) -> Tensor:
        shares = zip(
            self.inputs.chunk(dist.get_world_size()),
            self.targets.chunk(dist.get_world_size()),
            strict=True,
        )
        losses = [cross_entropy(self.run(params, x), y) for x, y in shares]
        return torch.stack(losses).mean()

    def run(self, params: Params, inputs: Tensor) -> Tensor:
        """The whole model's output."""
        buffers = {n: b.clone() for n, b in self.whole.named_buffers()}
        made: Tensor = functional_call(self.whole, {**params, **buffers}, (inputs,))
        return made

    def traced(self, params: Params) -> tuple[Tensor, Tensor]:
        """What the first rank looks at: whole parameters on meta."""
        inputs, targets = self.inputs[self.own], self.targets[self.own]
        output = self.run(params, inputs)
        return output, cross_entropy(output, targets)

    @contextmanager
    def moved(self, params: Params) -> Iterator[None]:
        """The engine's shards where they are asked for, and put back."""
        kept = {n: p.clone() for n, p in self.here().items()}
        with torch.no_grad():
            try:
                self._place(params)
                yield
            finally:
                self._place(kept)

    def _place(self, params: Params) -> None:
        for part in self.model.modules():
            if isinstance(part, FSDPModule):
                part.reshard()  # a root keeps what it gathered where nothing goes backward
        for name, held in self.here().items():
            held.copy_(params[name])

    def gradient(self, params: Params) -> Params:
        """Of all ranks, what is held here, by the engine's own backward."""
        with self.moved(params), torch.enable_grad():
            output = self.model(self.inputs[self.own])
            cross_entropy(output, self.targets[self.own]).backward()
        found = {n: local(p.grad).clone() for n, p in self.params.items()}  # type: ignore[arg-type]
        self.model.zero_grad()
        return found

    def output(self, params: Params) -> Tensor:
        """Of this rank's share, by the engine's own forward."""
        with self.moved(params):
            made: Tensor = self.model(self.inputs[self.own])
        return made

    def loss(self, params: Params) -> Tensor:
        """Of all ranks."""
        found = cross_entropy(self.output(params), self.targets[self.own])
        return everywhere(found) / dist.get_world_size()

    def found(self) -> Found:
        """Symmetries, from shapes and from what is held here."""
        point = general(self.here(), self.shards)
        return find_parted(
            self.traced, point, self.gradient(point), self.shards,
            of_first, self.loss, self.output, everywhere,
        )  # fmt: skip


def everywhere(x: Tensor) -> Tensor:
    made = x.clone()
    dist.all_reduce(made)
    return made


def of_first(make: Callable[[], Shown]) -> Shown:
    box = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    assert box[0] is not None
    return box[0]


def shards_of(params: Params, mesh: DeviceMesh) -> Shards:
    """The ranks that hold one copy of the model, in a group that training does not use."""
    rows = mesh.mesh.reshape(-1, mesh.mesh.shape[-1]).tolist()
    own = None
    for ranks in rows:  # all ranks make all groups
        group = dist.new_group(ranks)
        own = group if dist.get_rank() in ranks else own

    def total(x: Tensor) -> Tensor:
        dist.all_reduce(x, group=own)
        return x

    exchange = partial(swap, group=own)
    rank = mesh.get_local_rank(mesh.ndim - 1)
    return Shards(
        layout=layout_of(params),
        rank=rank,
        ranks=mesh.size(mesh.ndim - 1),
        total=total,
        exchange=exchange,
    )


def told(
    members: Sequence[ContinuousSymmetry], points: Sequence[Params], shards: Shards
) -> dict[str, Tensor]:
    """All that is known of charges at one step."""
    before, after, gradient = points
    charges = Charges(members, before, sketch=False, shards=shards)
    reading = charges.read(before)
    values = charges.values(reading)
    rates = Rates(lr=dict.fromkeys(charges.names, RATE), decay=dict.fromkeys(charges.names, DECAY))
    change = charges.step(values, before, after, gradient, rates)
    return {
        "charge": values,
        "scale": charges.scales(reading),
        "length": charges.lengths(reading),
        "law": change.slopes,
        "drift": change.drift,
        "closure": charges.values(charges.read(after)) - values - change.drift,
        **change.causes,
    }


def compared(network: Sharded) -> dict[str, Any]:
    """How far what shards say is from what the whole model says, and what was told for it."""
    found = network.found()
    points, whole = network.step(), network.step_of_the_whole()
    usable = [
        s
        for s in found
        if isinstance(s, ContinuousSymmetry) and s.status in ("verified", "approximate")
    ]
    with Collectives() as told_by:
        mine = told(usable, points, network.shards)
    expected = told(usable, whole, ALONE)
    pull = sum(float(g.square().sum()) for g in whole[2].values()) ** 0.5
    reach = pull * float(expected["length"].max())  # what a law is small beside
    sizes = {"law": reach, "symmetry": RATE * reach, "optimizer": RATE * reach}
    sizes |= {"closure": float(expected["charge"].abs().max())}
    gaps = {}
    for name, value in expected.items():
        scale = max(float(value.abs().max()), sizes.get(name, 0.0), 1e-300)
        gaps[name] = float((mine[name] - value).abs().max()) / scale
    families = Counter(s.family for s in usable)
    return {
        "gaps": gaps,
        "families": dict(families),
        "found": sorted((s.family, s.name, s.dimension, s.status) for s in usable),
        "calls": dict(told_by.calls),
        "closure": float(mine["closure"].abs().max()) / sizes["closure"],
        "rests": found.notes[0],
        "same": _same(mine),
        "held": sum(p.numel() for p in points[0].values()),
        "of": sum(p.numel() for p in whole[0].values()),
    }


def _same(mine: dict[str, Tensor]) -> bool:
    """Whether all ranks have the same, bit by bit, replicas among them."""
    flat = torch.cat([x.reshape(-1) for x in mine.values()])
    every = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(every, flat)
    return all(torch.equal(x, flat) for x in every)


def refused(mesh: DeviceMesh) -> list[str]:
    """What is said of placements that leave no one stretch of an axis here."""
    placements: list[list[Placement]] = [
        [Partial(), *[Replicate()] * (mesh.ndim - 1)],
        [*[Replicate()] * (mesh.ndim - 1), _StridedShard(0, split_factor=2)],
    ]
    if mesh.ndim > 1:
        placements.append([Shard(0), Shard(1)])
    said = []
    for given in placements:
        tensor = DTensor.from_local(torch.ones(4, 4), mesh, given)
        try:
            layout_of({"w": tensor})
        except TypeError as error:
            said.append(str(error))
    return said


NETWORKS = {make.__name__: make for make in (language, pictures)}


def every_charge(rank: int, replicas: int, networks: str) -> dict[str, Any]:
    """What one rank finds of networks that are sharded in so many replicas."""
    size = dist.get_world_size()
    shape = (size,) if replicas == 1 else (replicas, size // replicas)
    names = ("shard",) if replicas == 1 else ("copy", "shard")
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    made = {name: Sharded(NETWORKS[name], mesh) for name in networks.split()}
    found: dict[str, Any] = {name: compared(network) for name, network in made.items()}
    with Collectives() as seen:
        next(iter(made.values())).params["head.weight"].full_tensor()  # type: ignore[operator]
    return {**found, "gathered": dict(seen.calls), "refused": refused(mesh)}
