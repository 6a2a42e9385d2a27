"""Faults: whatever one rank does, training goes on bit by bit, and nobody waits for long."""

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import eqtoolbox as eq
from eqtoolbox.record.schedule import every
from eqtoolbox.watch.probe import Measurement, Probe, Scheduled
from eqtoolbox.world.control import Control
from eqtoolbox.world.world import Retired
from tests.distributed.ranks import on_ranks, once

STEPS, AT, PATIENCE = 6, 2, 3.0
COLLECTIVES = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce_scatter_tensor",
    "reduce_scatter", "all_to_all_single", "reduce", "gather", "scatter", "barrier",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Trouble(Probe):
    """Evaluates the loss of all ranks twice; the second rank gets into trouble between."""

    name: ClassVar[str] = "trouble"
    headline: ClassVar[str] = "loss"
    mode: ClassVar[Any] = "train"
    kind: str = ""

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        with torch.no_grad():
            first = float(snapshot.objective.loss(snapshot.before))
            if dist.get_rank() == 1 and snapshot.step >= AT:
                _trouble(self.kind)
            second = float(snapshot.objective.loss(snapshot.before))
        yield Measurement("loss", first)
        yield Measurement("again", second)


def _trouble(kind: str) -> None:
    if kind == "raises":
        raise ValueError("made up")
    if kind == "no memory":
        raise torch.OutOfMemoryError("made up")
    if kind == "naps":
        time.sleep(0.5)
    if kind == "sleeps":
        time.sleep(PATIENCE + 3)
    if kind == "swallows":  # goes on where the others wait
        dist.get_rank()


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))


def batches(rank: int, steps: int) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(rank)
    draw = lambda: torch.randn(4, 5, generator=made)
    return [(draw(), torch.randint(2, (4,), generator=made)) for _ in range(steps)]


def train(rank: int, kind: str, watched: bool, where: str) -> dict[str, Any]:
    """A run in which the second rank has the trouble, or the same without a monitor."""
    model = DistributedDataParallel(network())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    criterion = nn.CrossEntropyLoss()
    monitor = None
    clock = time.perf_counter
    if watched:
        if kind == "clock" and rank == 1:
            time.perf_counter = lambda: 5 * clock()
        probes: Any = [Scheduled(probe=Trouble(kind=kind), schedule=every(1))]
        budget = None
        if kind in ("clock", "no batch"):
            probes, budget = [eq.probes.Curvature()], (0.5 if kind == "clock" else None)
        monitor = eq.attach(
            model, optimizer, criterion=criterion, probes=probes, budget=budget,
            rank_timeout=PATIENCE, run_dir=f"{where}/{kind}", exist="replace",
            schedule=1 if kind in ("clock", "no batch") else None,
        )  # fmt: skip
    steps = AT if kind == "no batch" and rank == 1 else STEPS
    started = clock()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with Join([model]):
            for x, y in batches(rank, steps):
                optimizer.zero_grad()
                criterion(model(x), y).backward()
                optimizer.step()
        seconds = clock() - started
        retired, counts = "", {}
        if monitor is not None:
            retired = monitor._world.retired
            counts = monitor._budget.points
            monitor.close()
    time.perf_counter = clock
    return {
        "parameters": [p.detach().numpy().copy() for p in model.parameters()],
        "warnings": [str(w.message) for w in told if "eqtoolbox" in str(w.message)],
        "retired": retired,
        "seconds": seconds,
        "points": {name: n for name, (n, _) in counts.items()},
    }


FAULTS = ("", "raises", "no memory", "naps", "sleeps", "no batch", "clock")


def every_fault(rank: int, where: str) -> dict[str, Any]:
    found = {}
    for kind in FAULTS:
        plain = train(rank, kind, watched=False, where=where)
        found[kind] = train(rank, kind, watched=True, where=where), plain
        dist.barrier()
    found["groups"] = groups_used(rank, where)
    found["one"] = on_one_only(rank)
    found["other"] = with_others(rank)
    return found


def groups_used(rank: int, where: str) -> dict[str, Any]:
    """Which groups collectives of a watched run were on."""
    seen: list[tuple[str, bool]] = []
    training = dist.group.WORLD

    def spying(name: str, call: Any) -> Any:
        def spy(*args: Any, **kwargs: Any) -> Any:
            given = kwargs.get("group") or next(
                (a for a in args if isinstance(a, dist.ProcessGroup)), None
            )
            seen.append((name, given is None or given is training))
            return call(*args, **kwargs)

        return spy

    kept = {name: getattr(dist, name) for name in COLLECTIVES}
    for name, call in kept.items():
        setattr(dist, name, spying(name, call))
    try:
        train(rank, "", watched=False, where=where)
        plain = [*seen]
        train(rank, "", watched=True, where=where)
    finally:
        for name, call in kept.items():
            setattr(dist, name, call)
    ours = seen[len(plain) :]
    of_trainings = [name for name, of_training in ours if of_training]
    return {"own": len(ours) - len(of_trainings), "training's": of_trainings, "plain": plain}


def on_one_only(rank: int) -> dict[str, Any]:
    """What happens where the first rank attaches alone, and where the second does."""
    found: dict[str, Any] = {}
    for which in range(2):
        plain = train(rank, "", watched=False, where="")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model = DistributedDataParallel(network())
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            criterion, monitor = nn.CrossEntropyLoss(), None
            if rank == which:
                monitor = eq.attach(
                    model, optimizer, criterion=criterion, probes=[eq.probes.Curvature()],
                    rank_timeout=1, budget=None, schedule=1,
                )  # fmt: skip
            for x, y in batches(rank, STEPS):
                optimizer.zero_grad()
                criterion(model(x), y).backward()
                optimizer.step()
        held = [p.detach().numpy() for p in model.parameters()]
        pairs = zip(held, plain["parameters"], strict=True)
        found[f"same {which}"] = all((a == b).all() for a, b in pairs)
        found[f"said {which}"] = [str(w.message) for w in told if "eqtoolbox" in str(w.message)]
        found[f"sharpness {which}"] = monitor.latest("curvature/sharpness") if monitor else None
        if monitor:
            monitor.close()
        dist.barrier()
    return found


def with_others(rank: int) -> str:
    """What is said where ranks attach with different arguments."""
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        eq.attach(
            model, optimizer, criterion=nn.CrossEntropyLoss(), seed=rank + 5, rank_timeout=7 + rank
        )
    except ValueError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return once(tmp_path_factory, "faults", lambda at: on_ranks(2, every_fault, str(at)))


@pytest.mark.parametrize("kind", FAULTS)
def test_training_is_that_without_a_monitor_to_the_bit(found: Any, kind: str) -> None:
    for rank in range(2):
        watched, plain = found[rank][kind]
        pairs = zip(watched["parameters"], plain["parameters"], strict=True)
        assert all((a == b).all() for a, b in pairs)


@pytest.mark.parametrize("kind", FAULTS)
def test_nobody_waits_beyond_the_time_limit(found: Any, kind: str) -> None:
    assert all(found[rank][kind][0]["seconds"] < 4 * PATIENCE + 8 for rank in range(2))


@pytest.mark.parametrize("kind", ["", "naps", "clock"])
def test_a_slow_rank_or_another_clock_changes_nothing(found: Any, kind: str) -> None:
    for rank in range(2):
        assert not found[rank][kind][0]["retired"]
        assert not found[rank][kind][0]["warnings"]


@pytest.mark.parametrize(("kind", "cause"), [("raises", "made up"), ("no memory", "memory")])
def test_what_fails_on_one_rank_fails_on_all_and_is_told_by_the_first(
    found: Any, kind: str, cause: str
) -> None:
    first, second = found[0][kind][0], found[1][kind][0]
    assert not first["retired"] and not second["retired"]
    assert not second["warnings"]
    assert any(cause in said for said in first["warnings"])
    assert first["points"]["trouble"] == AT


@pytest.mark.parametrize(("kind", "cause"), [("sleeps", "did not answer"), ("no batch", "rank 1")])
def test_a_rank_that_does_not_answer_ends_measuring_on_all_with_one_warning(
    found: Any, kind: str, cause: str
) -> None:
    first = found[0][kind][0]
    assert "rank 1" in first["retired"] and cause in first["retired"]
    parted = [said for said in first["warnings"] if "nothing is measured from" in said]
    assert len(parted) == 1 and "rank 1" in parted[0]
    assert first["points"] and max(first["points"].values()) >= 1


def test_no_collective_runs_on_a_group_of_trainings(found: Any) -> None:
    for rank in range(2):
        used = found[rank]["groups"]
        assert used["own"] > 20
        assert used["training's"] == [name for name, _ in used["plain"]]  # those of `Join`


def test_a_monitor_on_one_rank_only_measures_its_share_and_says_so(found: Any) -> None:
    for rank in range(2):
        assert found[rank]["one"]["same 0"] and found[rank]["one"]["same 1"]
    (said,) = found[0]["one"]["said 0"]
    assert "rank 1 did not call it within 1 s" in said and "its own share" in said
    assert found[0]["one"]["sharpness 0"] is not None
    assert len(found[1]["one"]["said 1"]) == 1 and found[1]["one"]["sharpness 1"] is None


def test_monitors_that_differ_are_refused_on_all_ranks(found: Any) -> None:
    assert all("seed is" in found[rank]["other"] for rank in range(2))


class Exchange:
    """A collective that a rank waits for in vain so many times, and that is over by then."""

    def __init__(self, vain: float) -> None:
        self.vain = vain

    def wait(self, timeout: Any) -> None:
        self.vain -= 1
        if self.vain >= 0:
            raise RuntimeError("Timed out waiting")

    def is_completed(self) -> bool:
        return True


def test_what_ends_just_after_it_was_waited_for_is_no_failure() -> None:
    control = object.__new__(Control)
    control.patience, control.retired = 0.0, ""
    vars(control).update(say=lambda *_: None, said=lambda _: {}, _why=str)
    control._wait(Exchange(1))
    assert not control.retired
    with pytest.raises(Retired, match="Timed out"):
        control._wait(Exchange(math.inf))
    assert control.retired
