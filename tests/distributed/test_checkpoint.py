"""A distributed checkpoint: saved by two ranks, measuring goes on alike on two and on one."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import eqtoolbox as eq
from eqtoolbox.integrations.distributed import DistributedState
from tests.distributed.ranks import on_ranks, once
from tests.integrations.records import rows

CUT, STEPS = 2, 4


def share(step: int, rank: int, size: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(step)
    x, y = torch.randn(8, 6, generator=made).double(), torch.randint(3, (8,), generator=made)
    return x[rank::size], y[rank::size]


def train(
    run_dir: str,
    steps: range,
    save: str = "",
    load: str = "",
    loads: tuple[int, ...] = (0, 1),
    **options: Any,
) -> dict[str, Any]:
    """Some steps of a run, as a part of it or as the whole."""
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)
    inner = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    model, criterion = DistributedDataParallel(inner), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    probes = [eq.probes.Curvature(k=1), eq.probes.Conservation()]
    monitor = eq.attach(
        model, optimizer, criterion=criterion, probes=probes, schedule=1, budget=None,
        run_dir=run_dir, resume=bool(load), **options,
    )  # fmt: skip
    states = {"model": inner.state_dict(), "momentum": momentum(inner, optimizer)}
    if load:
        dcp.load(states, checkpoint_id=load)
        inner.load_state_dict(states["model"])
        for p, buffer in zip(inner.parameters(), states["momentum"].values(), strict=True):
            optimizer.state[p]["momentum_buffer"] = buffer.clone()
        if rank in loads:
            dcp.load({"monitor": DistributedState(monitor)}, checkpoint_id=load, no_dist=True)
    for step in steps:
        x, y = share(step, rank, size)
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    if save:
        states = {"model": inner.state_dict(), "momentum": momentum(inner, optimizer)}
        dcp.save({**states, "monitor": DistributedState(monitor)}, checkpoint_id=save)
    retired = monitor._world.retired
    monitor.close()
    return {"parameters": inner.state_dict(), "retired": retired, "step": monitor.step}


def momentum(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The buffers by name, zero before the first step."""
    state = optimizer.state
    return {
        n: state[p]["momentum_buffer"] if p in state else torch.zeros_like(p)
        for n, p in model.named_parameters()
    }


def on_rank(rank: int, where: str) -> dict[str, Any]:
    own = f"{where}/{rank}"
    train(f"{own}/whole", range(STEPS))
    train(f"{own}/cut", range(CUT), save=f"{where}/saved")
    if rank == 0:
        for other in ("one", "odd"):
            shutil.copytree(f"{own}/cut", f"{own}/{other}")
    found = {"cut": train(f"{own}/cut", range(CUT, STEPS), load=f"{where}/saved")}
    late = {"load": f"{where}/saved", "loads": (0,), "rank_timeout": 3.0}
    found["odd"] = train(f"{own}/odd", range(CUT, STEPS), **late)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    return once(tmp_path_factory, "saved", lambda at: (at, on_ranks(2, on_rank, str(at))))


def test_a_run_that_two_ranks_go_on_with_has_the_records_of_an_uninterrupted_one(
    found: Any,
) -> None:
    where, answers = found
    assert [a["cut"]["retired"] for a in answers] == ["", ""]
    assert {r.segment for r in eq.Run(where / "0/cut").records()} == {0, 1}
    assert rows(where / "0/cut") == rows(where / "0/whole")


@pytest.mark.filterwarnings("ignore")
def test_one_process_goes_on_with_the_same_numbers(found: Any, tmp_path: Path) -> None:
    where, _ = found
    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        train(str(where / "0/one"), range(CUT, STEPS), load=f"{where}/saved")
    finally:
        dist.destroy_process_group()
    one, whole = eq.Run(where / "0/one"), eq.Run(where / "0/whole")
    for name in ("curvature/sharpness", "conservation/drift/rescale"):
        assert list(one.series(name)[0]) == list(range(STEPS))
        assert one.series(name)[1] == pytest.approx(whole.series(name)[1], rel=1e-5), name


def test_a_state_that_some_ranks_load_ends_measuring_and_says_why(found: Any) -> None:
    where, answers = found
    assert all("rank 1" in a["odd"]["retired"] for a in answers)
    said = [e["message"] for e in eq.Run(where / "0/odd").events if e["kind"] == "warning"]
    assert any("load_state_dict() was called here and not on every rank" in m for m in said)
    first, second = (a["odd"]["parameters"] for a in answers)
    assert all(torch.equal(p, second[n]) for n, p in first.items()), "training goes on"


@pytest.mark.filterwarnings("ignore")  # torch says that it saves in a single process
def test_a_monitor_itself_refuses_what_a_distributed_load_left_of_its_state(
    found: Any, tmp_path: Path
) -> None:
    criterion = nn.MSELoss()

    def attached() -> eq.Monitor:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return eq.attach(model, optimizer, criterion=criterion, probes="light", budget=None)

    with attached() as monitor:
        criterion(monitor.model(torch.ones(3, 2)), torch.zeros(3, 2)).backward()
        monitor.optimizer.step()
        dcp.save({"monitor": monitor}, checkpoint_id=tmp_path / "saved", no_dist=True)
    with attached() as monitor, pytest.raises(ValueError, match=r"DistributedState\(monitor\)"):
        dcp.load({"monitor": monitor}, checkpoint_id=tmp_path / "saved", no_dist=True)


def test_a_state_is_one_value_that_is_not_looked_into(found: Any) -> None:
    entries = dcp.FileSystemReader(found[0] / "saved").read_metadata().state_dict_metadata
    assert [name for name in entries if name.startswith("monitor")] == ["monitor.eqtoolbox"]
