"""DistributedDataParallel as people use it: accumulation, unused parameters, static graphs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import eqtoolbox as eq
from eqtoolbox.linalg import hessian, top_eigenpairs
from tests.distributed.ranks import on_ranks, once

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "inner": {},  # the model in the wrapper is attached
    "accumulated": {},
    "uneven": {},  # the first rank accumulates more
    "unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
    "views": {"gradient_as_bucket_view": True},
}


class Branched(nn.Module):
    """One of two branches runs, as the batch says; or one branch alone."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        if both:
            self.two = nn.Linear(4, 6)

    def forward(self, x: Tensor, first: bool = True) -> Tensor:
        return self.head((self.one if first else self.two)(x).tanh())  # type: ignore[no-any-return]


def network(way: str) -> nn.Module:
    torch.manual_seed(2)
    return Branched(both=way in ("unused", "static")).double()


def batches(way: str, rank: int) -> list[tuple[Tensor, Tensor, bool]]:
    made = torch.Generator().manual_seed(10 + rank)
    count = {"accumulated": 3, "uneven": 3 - rank}.get(way, 1)
    first = way != "unused" or rank == 0
    return [
        (
            torch.randn(4, 4, generator=made).double(),
            torch.randint(3, (4,), generator=made),
            first,
        )
        for _ in range(count)
    ]


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    x, y, first = batch
    return nn.functional.cross_entropy(model(x, first), y)


def on_rank(rank: int) -> dict[str, Any]:
    return {way: measured(way, rank) for way in WAYS}


def measured(way: str, rank: int) -> dict[str, Any]:
    model = network(way)
    wrapped = DistributedDataParallel(model, **WAYS[way])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watched = model if way == "inner" else wrapped
    probes = [eq.probes.Curvature()]
    rows: list[dict[str, Any]] = []
    monitor = eq.attach(
        watched, optimizer, probes=probes, budget=None, sinks=[lambda row, step: rows.append(row)]
    )
    loss = monitor.loss(loss_of)
    optimizer.zero_grad()
    mine = batches(way, rank)
    for batch in mine[:-1]:
        with wrapped.no_sync():
            loss(wrapped, batch).backward()
    loss(wrapped, mine[-1]).backward()
    optimizer.step()
    latest = {
        name: monitor.latest(name)
        for name in ("curvature/eigenvalue/1", "monitor/closure_grad_cos")
    }
    names = [*monitor._journal.latest]
    retired = monitor._world.retired
    monitor.close()
    return {"latest": latest, "names": names, "retired": retired, "rows": len(rows)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return once(tmp_path_factory, "ddp_options", lambda _: on_ranks(2, on_rank))


@pytest.mark.parametrize("way", WAYS)
def test_sharpness_is_that_of_what_the_ranks_average(found: Any, way: str) -> None:
    model = network(way)
    params = {n: p.detach().clone() for n, p in model.named_parameters()}

    def averaged(p: dict[str, Tensor]) -> Tensor:
        call = lambda b: torch.func.functional_call(model, p, (b[0], b[2]))
        each = [
            sum(nn.functional.cross_entropy(call(b), b[1]) for b in batches(way, rank))
            for rank in range(2)
        ]
        return (each[0] + each[1]) / 2  # type: ignore[operator]

    exact = top_eigenpairs(hessian(averaged, params), k=1).values[0]
    for answer in found:
        assert not answer[way]["retired"]
        assert answer[way]["latest"]["monitor/closure_grad_cos"] > 0.9999
    first = found[0][way]["latest"]["curvature/eigenvalue/1"]
    assert first == pytest.approx(float(exact), rel=1e-5), found[0][way]["names"]


def test_only_the_first_rank_tells_trackers(found: Any) -> None:
    assert all(found[0][way]["rows"] > 0 and found[1][way]["rows"] == 0 for way in WAYS)
