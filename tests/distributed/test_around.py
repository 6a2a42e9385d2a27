"""What stands around a model is found, and an evaluation exchanges nothing over its groups."""

import logging
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.replicate import replicate
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import eqtoolbox as eq
from tests.distributed.ranks import on_ranks, once


class Own(DistributedDataParallel):
    """A wrapper that a framework makes of it."""


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x).tanh()
        return {"hidden": hidden, "logits": self.head(hidden)}


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0])["logits"], batch[1])


def talkative(model: nn.Module, batch: Any) -> Tensor:
    """A loss that tells all processes its mean."""
    loss = loss_of(model, batch)
    dist.all_reduce(loss.detach().clone())
    return loss


def gathering(model: nn.Module, batch: Any) -> Tensor:
    """A loss of what all processes found."""
    logits = model(batch[0])["logits"]
    found = [torch.empty_like(logits) for _ in range(dist.get_world_size())]
    dist.all_gather(found, logits.detach())
    return loss_of(model, batch) + 0.1 * (logits - torch.stack(found).mean(0)).square().mean()


def train(case: str, watched: bool) -> dict[str, Any]:
    torch.manual_seed(1)
    model, said = Parts().double(), list[str]()
    if case == "part":
        model.body.requires_grad_(False)
    wrapped: nn.Module = model
    if case == "replicate":  # torchtitan's way, which makes its wrapper at the first call
        replicate(model, device_mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    elif case != "before":
        kind = Own if case == "subclass" else DistributedDataParallel
        wrapped = kind(model, find_unused_parameters=case == "sink")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {"part": model.head, "held": model}.get(case, wrapped)
    loss = {"talkative": talkative, "gathering": gathering}.get(case, loss_of)
    criterion = nn.CrossEntropyLoss() if case in ("sink", "part") else None
    heard = logging.Handler(logging.WARNING)
    heard.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("eqtoolbox").addHandler(heard)
    monitor = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if watched:
            monitor = eq.attach(
                given, optimizer, probes=[eq.probes.Curvature(k=1)], budget=None, schedule=1,
                criterion=criterion, rank_timeout=20.0,
            )  # fmt: skip
            if criterion is None:
                loss = monitor.loss(loss)
        if case == "before":
            wrapped = DistributedDataParallel(model)
        if case == "sharded":
            plain = Parts().double()
            optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
            monitor = watched and eq.attach(plain, optimizer, criterion=nn.CrossEntropyLoss())
            wrapped = fully_shard(plain)
            optimizer.param_groups[0]["params"] = [*plain.parameters()]
            model = wrapped
        made = torch.Generator().manual_seed(dist.get_rank())
        for _ in range(2):
            x, y = torch.randn(4, 6, generator=made).double(), torch.tensor([0, 1, 2, 0])
            optimizer.zero_grad()
            if criterion is not None:
                criterion(wrapped(x)["logits"], y).backward()
            else:
                loss(wrapped, (x, y)).backward()
            optimizer.step()
        found = {}
        if monitor:
            monitor.close()
            found = {k: monitor.latest(f"monitor/closure_grad_{k}") for k in ("cos", "ratio")}
            found["sharpness"] = monitor.latest("curvature/sharpness")
            found["several"] = monitor._world.several
    logging.getLogger("eqtoolbox").removeHandler(heard)
    said += [str(w.message) for w in caught if "eqtoolbox" in str(w.message)]
    whole = [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()]
    return {"parameters": whole, "said": said, **found}


CASES = (
    "plain", "subclass", "held", "replicate", "part", "sink", "before", "talkative", "gathering",
    "sharded",
)  # fmt: skip


def on_rank(rank: int) -> dict[str, Any]:
    return {case: (train(case, True), train(case, False)) for case in CASES}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return once(tmp_path_factory, "around", lambda _: on_ranks(2, on_rank))


@pytest.mark.parametrize("case", CASES)
def test_training_is_bit_identical(found: Any, case: str) -> None:
    for answer in found:
        watched, alone = answer[case]
        assert all(map(torch.equal, watched["parameters"], alone["parameters"]))


@pytest.mark.parametrize("case", ["subclass", "held", "replicate", "sink"])
def test_what_averages_the_gradients_is_found_wherever_it_stands(found: Any, case: str) -> None:
    watched, plain = found[0][case][0], found[0]["plain"][0]
    assert watched["several"]
    assert watched["said"] == []
    assert watched["sharpness"] == pytest.approx(plain["sharpness"], rel=1e-9)


def test_a_wrapper_that_averages_more_than_the_watched_part_is_found(found: Any) -> None:
    for answer in found:
        assert answer["part"][0]["several"]
        assert answer["part"][0]["said"] == []
    assert found[0]["part"][0]["cos"] == pytest.approx(1.0, abs=1e-9)


def test_a_monitor_attached_before_the_wrapper_says_so_on_every_rank(found: Any) -> None:
    for answer in found:
        watched = answer["before"][0]
        assert not watched["several"]
        (said,) = [words for words in watched["said"] if "2 processes train" in words]
        assert "attach after DistributedDataParallel(model) or accelerator.prepare(model)" in said


@pytest.mark.parametrize("case", ["talkative", "gathering"])
def test_a_loss_that_talks_to_other_processes_is_not_evaluated_again(found: Any, case: str) -> None:
    said = found[0][case][0]["said"]
    assert len(said) == 1
    assert "the loss talks to the other processes (all" in said[0]
    assert "meet one of the training's" in said[0]
    assert found[1][case][0]["said"] == [], "the first rank speaks"
    assert found[0][case][0]["sharpness"] is None


def test_parameters_that_are_sharded_after_attach_end_measuring(found: Any) -> None:
    said = [answer["sharded"][0]["said"] for answer in found]
    assert any("were sharded after attach(); attach after fully_shard()" in w for w in said[0])
    assert all(any("2 processes train" in w for w in words) for words in said)
