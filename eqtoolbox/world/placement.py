"""Placement: how a model lies on its processes, read off what FSDP2 or tensor parallelism made."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.world.layout import layout_of
from eqtoolbox.world.shards import Piece

SHARD, MODEL = "shard", "model"  # axes: ranks with a share of the batch each, or all with the same


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The ranks around this one along every axis, itself among them, as numbers of processes.

    Data axes are two: along `shard` parameters are cut, along `replicate` they are not. Along
    `model` they are cut, too (tensor parallelism), but every rank works out the same.
    """

    shard: tuple[int, ...]
    replicate: tuple[int, ...]
    model: tuple[int, ...]
    data: tuple[int, ...]  # over whose shares of the batch training averages
    every: tuple[int, ...]  # all that hold the model together


@dataclass(frozen=True, kw_only=True)
class TrainedBlock:
    """Parameters that training gathers together, and the types that it computes with."""

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...] = ()  # at whose calls inputs and outputs are cast
    dtype: torch.dtype | None = None  # of parameters, and of inputs if `casts`
    casts: bool = False
    output: torch.dtype | None = None  # of outputs
    device: torch.device | None = None  # where it computes, if parameters lie elsewhere


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Ranks, pieces and blocks of a model."""

    axes: Axes
    layout: Mapping[str, Piece]  # of every parameter
    cut: Mapping[str, str]  # axis by parameter, of those that are cut
    blocks: tuple[TrainedBlock, ...]  # of all parameters


def placement_of(model: nn.Module) -> Placement | None:
    """How the parameters of a model lie on processes; None where each process has all of them.

    To be asked between steps, when nothing is gathered.

    Raises:
        TypeError: it is placed in a way that cannot be evaluated again; says which.
    """
    named = dict(model.named_parameters())
    groups = [*_groups(model)]
    placed = {n: p for n, p in named.items() if hasattr(p, "device_mesh")}
    if not groups and not placed:
        return None
    names = {id(p): n for n, p in named.items()}
    blocks = tuple(_block(group, state, names) for group, state in groups)
    held = {n for block in blocks for n in block.names}
    apart = {n: p for n, p in placed.items() if n not in held}
    if groups and apart:
        raise TypeError(
            f"{next(iter(apart))} is a DTensor that no FSDP2 module gathers, beside parameters "
            "that one does: FSDP2 together with tensor parallelism cannot be evaluated again yet"
        )
    layout = layout_of(named)
    cut = {n: SHARD if n in held else MODEL for n, piece in layout.items() if piece.dim is not None}
    axes = _data_axes([g for g, _ in groups]) if groups else _model_axes(apart)
    return Placement(axes=axes, layout=layout, cut=cut, blocks=blocks + _others(named, held))


def gathered_now(model: nn.Module) -> list[Tensor]:
    """The whole parameters that FSDP2 made of its shards, as far as it has them at the moment."""
    found = (
        getattr(param, "_unsharded_param", None)
        for group, _ in _groups(model)
        for param in group.fsdp_params
    )
    return [p for p in found if p is not None]


def accumulates(model: nn.Module) -> bool:
    """Whether FSDP2 holds gradients of earlier backwards that it did not reduce yet."""
    for group, _ in _groups(model):
        for param in group.fsdp_params:
            whole = getattr(param, "_unsharded_param", None)
            if getattr(param, "unsharded_accumulated_grad", None) is not None:
                return True
            if whole is not None and whole.grad is not None:
                return True
    return False


def _groups(model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Every group of parameters of FSDP2, and the state that it belongs to."""
    seen = set()
    for module in model.modules():
        of_engine: Any = module
        state = of_engine._get_fsdp_state() if hasattr(module, "_get_fsdp_state") else None
        if state is None or id(state) in seen:
            continue
        seen.add(id(state))
        several = getattr(state, "_fsdp_param_groups", None)
        one = [getattr(state, "_fsdp_param_group", None)] if several is None else several
        yield from ((group, state) for group in one if group is not None)


def _block(group: Any, state: Any, names: Mapping[int, str]) -> TrainedBlock:
    params = [param.sharded_param for param in group.fsdp_params]
    missing = [p for p in params if id(p) not in names]
    if missing:
        raise TypeError(
            "a model of FSDP2 is to be looked at while its parameters are sharded, between steps: "
            f"one of shape {tuple(missing[0].shape)} is whole at the moment"
        )
    for param in params:
        if hasattr(param.to_local(), "fsdp_pre_all_gather"):
            raise TypeError(
                f"{names[id(param)]} is gathered in a way of its own ({type(param.to_local())}), "
                "such as float8, which cannot be done again"
            )
    policy = state._mp_policy
    return TrainedBlock(
        names=tuple(names[id(p)] for p in params),
        modules=tuple(group.modules),
        dtype=policy.param_dtype,
        casts=bool(policy.cast_forward_inputs and policy.param_dtype),
        output=policy.output_dtype,
        device=group.device,
    )


def _others(named: Mapping[str, Tensor], held: set[str]) -> tuple[TrainedBlock, ...]:
    """Blocks of the parameters that FSDP2 does not gather, one a module."""
    rows: dict[str, list[str]] = {}
    for name in named:
        if name not in held:
            rows.setdefault(name.rpartition(".")[0], []).append(name)
    return tuple(TrainedBlock(names=tuple(names)) for names in rows.values())


def _data_axes(groups: list[Any]) -> Axes:
    found = {_axes_of(group.mesh_info) for group in groups}
    if len(found) > 1:
        raise TypeError(
            f"parameters are sharded over different ranks, {[a.shard for a in found]}"
            ", such as those of experts, which cannot be evaluated again yet"
        )
    return found.pop()


def _axes_of(info: Any) -> Axes:
    mesh, shard, copies = info.mesh, info.shard_mesh_dim, getattr(info, "replicate_mesh_dim", None)
    here = (torch.distributed.get_rank(),)
    every = tuple(sorted(mesh.mesh.flatten().tolist()))
    return Axes(
        shard=here if shard is None else _ranks(mesh, shard),
        replicate=here if copies is None else _ranks(mesh, copies),
        model=here,
        data=every,
        every=every,
    )


def _model_axes(params: Mapping[str, Any]) -> Axes:
    here: tuple[int, ...] = (torch.distributed.get_rank(),)
    found = {here}
    for p in params.values():
        cut = [k for k, placement in enumerate(p.placements) if placement.is_shard()]
        found |= {_ranks(p.device_mesh, k) for k in cut}
    several = sorted(found - {here}) or [here]
    if len(several) > 1:
        raise TypeError(f"parameters are cut over different ranks: {several[0]} and {several[1]}")
    if len(several[0]) < torch.distributed.get_world_size():
        raise TypeError(
            f"tensor parallelism over ranks {several[0]} together with data parallelism cannot be "
            "evaluated again yet"
        )
    return Axes(shard=here, replicate=here, model=several[0], data=here, every=several[0])


def _ranks(mesh: Any, axis: int) -> tuple[int, ...]:
    ranks = tuple(sorted(torch.distributed.get_process_group_ranks(mesh.get_group(axis))))
    if ranks.index(torch.distributed.get_rank()) != mesh.get_local_rank(axis):
        raise TypeError(f"expected a mesh with its ranks in ascending order, got {mesh.mesh}")
    return ranks
