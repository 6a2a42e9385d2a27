"""FSDP2: monitors on all ranks measure shards, and what they say is what one process would."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import eqtoolbox as eq
from tests.distributed.ranks import on_ranks, once
from tests.distributed.sharded import batch, mesh_of, network, shard, share

KINDS = ("gelu", "images", "dense")
STEPS = 2
COMPARED = ("conservation/", "curvature/", "equivariance/", "training/")
OTHERWISE = (  # of whole members, of the first rank's samples, or of sums that are rounding alone
    "curvature/symmetry_overlap", "conservation/epsilon", "equivariance/orbit_variance",
    "equivariance/growth", "equivariance/explained", "equivariance/direction_ratio",
    "training/loss",
)  # fmt: skip


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def mean_of_shares(model: nn.Module, batch: Any) -> Tensor:
    """In one process: batch normalisation has statistics of each share."""
    return torch.stack([loss_of(model, share(batch, rank, 2)) for rank in range(2)]).mean()


def train(kind: str, rank: int | None, where: str | None) -> dict[str, Any]:
    """One of two ranks, or one process, with a monitor if there is a place for its records."""
    model = network(kind)
    if rank is not None:
        model = shard(model, mesh_of())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    monitor = None
    loss = loss_of if rank is not None or kind != "images" else mean_of_shares
    if where is not None:
        monitor = eq.attach(
            model, optimizer, run_dir=where, budget=None, schedule=1,
            probes=[
                eq.probes.Conservation(), eq.probes.Curvature(),
                eq.probes.EquivarianceError(symmetries=["flip", "cyclic4"]), eq.probes.Noether(),
            ],
        )  # fmt: skip
        loss = monitor.loss(loss)
    data = batch(kind) if rank is None else share(batch(kind), rank, 2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(model, data).backward()
        optimizer.step()
    retired = monitor._world.retired if monitor else ""
    exchanged = dict(monitor._world.exchanged) if monitor and rank is not None else {}
    if monitor:
        monitor.close()
    held = [getattr(p, "to_local", lambda p=p: p)().detach().numpy() for p in model.parameters()]
    return {"held": held, "retired": retired, "exchanged": exchanged}


def gone_on(rank: int, again: bool) -> list[float | None]:
    """Three steps, the last by another monitor that is given the state of the first rank's."""
    model = shard(network("dense"), mesh_of())  # uneven shards
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    probes = [eq.probes.Conservation(), eq.probes.Curvature(), eq.probes.Tracking()]
    how: dict[str, Any] = {"probes": probes, "budget": None, "schedule": 1}
    criterion = nn.CrossEntropyLoss()
    monitor = eq.attach(model, optimizer, criterion=criterion, **how)
    x, y = share(batch("dense"), rank, 2)
    for step in range(3):
        if again and step == 2:
            state = [monitor.state_dict()]
            dist.broadcast_object_list(state, 0)
            monitor.close()
            monitor = eq.attach(model, optimizer, criterion=criterion, **how)
            monitor.load_state_dict(state[0])
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    names = ("conservation/drift/head_scale", "curvature/sharpness", "tracking/sharpness")
    found = [monitor.latest(name) for name in names]
    assert not monitor._world.retired, monitor._world.retired
    monitor.close()
    return found


def accumulated(rank: int) -> float | None:
    """Two micro-batches, of which FSDP2 reduces the gradients once; a layer that does not train."""
    model = network("dense")
    for p in model[0].parameters():
        p.requires_grad_(False)
    model = shard(model, mesh_of())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    criterion = nn.CrossEntropyLoss()
    probes = [eq.probes.Conservation(), eq.probes.Tracking()]
    monitor = eq.attach(
        model, optimizer, criterion=criterion, probes=probes, budget=None, schedule=lambda _: True
    )
    x, y = share(batch("dense"), rank, 2)
    for _ in range(2):
        optimizer.zero_grad()
        for last, (a, b) in enumerate(((x[:2], y[:2]), (x[2:], y[2:]))):
            model.set_requires_gradient_sync(bool(last))
            (criterion(model(a), b) / 2).backward()
        optimizer.step()
    cosine = monitor.latest("monitor/closure_grad_cos")
    assert monitor.latest("tracking/sharpness") is not None
    assert "conservation" not in monitor._journal._failures
    monitor.close()
    return cosine


def on_rank(rank: int, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        kind: (train(kind, rank, f"{where}/{kind}"), train(kind, rank, None)) for kind in KINDS
    }
    resumed = gone_on(rank, True), gone_on(rank, False)
    return found | {"resumed": resumed, "accumulated": accumulated(rank)}


def records(directory: Path) -> dict[tuple[int, str], Any]:
    lines = (directory / "records.jsonl").read_text().splitlines()
    return {(r["step"], r["name"]): r for r in map(json.loads, lines)}


def both(here: Path) -> tuple[Path, Path, Any]:
    answers = on_ranks(2, on_rank, str(here / "two"))
    for kind in KINDS:
        train(kind, None, str(here / "one" / kind))
    return here / "two", here / "one", answers


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    return once(tmp_path_factory, "fsdp", both)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_without_a_monitor_to_the_bit(runs: Any, kind: str) -> None:
    for answer in runs[2]:
        watched, plain = answer[kind]
        assert not watched["retired"]
        pairs = zip(watched["held"], plain["held"], strict=True)
        assert all((a == b).all() for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_shards_are_those_of_one_process(runs: Any, kind: str) -> None:
    here, there = records(runs[0] / kind), records(runs[1] / kind)
    still = {
        name.rpartition("/")[2]
        for (_, name), row in there.items()
        if name.startswith("conservation/step_drift/") and row["value"] < 1e-12
    }
    compared, differ = set(), []
    for (step, name), row in there.items():
        of_rounding = name.startswith("conservation/") and name.rpartition("/")[2] in still
        statistics = kind == "images" and name.startswith("equivariance/")  # running ones
        skipped = not name.startswith(COMPARED) or name.startswith(OTHERWISE)
        if row["status"] != "ok" or skipped or of_rounding or statistics:
            continue
        mine = here.get((step, name), {"value": None})["value"]
        compared.add(name.partition("/")[0])
        if not isinstance(mine, float) or not math.isclose(
            mine, row["value"], rel_tol=1e-5, abs_tol=1e-9
        ):
            differ.append((step, name, row["value"], mine))
    assert compared >= {"conservation", "curvature"}
    assert not differ, f"{len(differ)} of {len(there)}: {differ[:30]}"


def test_a_resumed_run_goes_on_from_the_first_ranks_numbers(runs: Any) -> None:
    for answer in runs[2]:
        resumed, whole = answer["resumed"]
        assert resumed[0] == pytest.approx(whole[0], rel=1e-9)
        assert resumed[1:] == pytest.approx(whole[1:], rel=1e-2)


def test_gradients_that_are_reduced_later_count(runs: Any) -> None:
    assert runs[2][0]["accumulated"] > 0.9999


@pytest.mark.parametrize("kind", KINDS)
def test_what_takes_whole_parameters_says_so(runs: Any, kind: str) -> None:
    row = records(runs[0] / kind)[0, "noether/second_order"]
    assert row["status"] == "not_applicable" and "whole parameters" in row["note"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_gathered_loss_is_the_engines(runs: Any, kind: str) -> None:
    assert records(runs[0] / kind)[0, "monitor/closure_grad_cos"]["value"] > 0.9999
