"""The loss of all ranks: value, gradient, Hessian products of the global batch, on each rank."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.linalg import hessian
from eqtoolbox.linalg.vectors import random_like
from eqtoolbox.replay.everywhere import Everywhere
from eqtoolbox.replay.gradient import replayed_gradient
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import Objective
from eqtoolbox.world.control import Control
from eqtoolbox.world.ranks import Ranks
from tests.distributed.ranks import on_ranks, once

SHARES = ((0, 5), (5, 8))


def network(synced: bool = False) -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, 3)
    model: nn.Module = nn.Sequential(*layers).double()
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if synced else model


def batch(first: int, last: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(5)
    x, y = torch.randn(8, 4, generator=made).double(), torch.randint(3, (8,), generator=made)
    return x[first:last], y[first:last]


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def objective(model: nn.Module, share: tuple[int, int]) -> Objective:
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    return Objective(
        model=model,
        loss_fn=loss_of,
        batch=batch(*share),
        random=RandomState.seeded(0),
        buffers=buffers,
    )


def of_rank(rank: int) -> dict[str, Any]:
    world = Ranks(Control((0, 1), 20.0, {}))
    return {
        "plain": measured(world, network(), SHARES[rank]),
        "synced": measured(world, network(synced=True), SHARES[rank]),
    }


def measured(world: Ranks, model: nn.Module, share: tuple[int, int]) -> dict[str, Any]:
    loss = Everywhere.of(objective(model, share), world)
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    found: dict[str, Any] = {}
    with world.together("test"), loss.isolated():
        found["value"] = float(loss.loss(params))
        found["gradient"] = replayed_gradient(loss, params)
        before = dict(world.exchanged)
        operator = hessian(loss, params, retain=True)
        v = random_like(params, torch.Generator().manual_seed(1))
        found["product"] = operator(v)
        built = dict(world.exchanged)
        found["again"] = operator(v)
        sums = [k for k in world.exchanged if k.startswith("sum")]
        found["sums"] = sum(world.exchanged[k] - built[k] for k in sums)
        found["built"] = sum(built[k] - before[k] for k in sums)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return once(tmp_path_factory, "everywhere", lambda _: on_ranks(2, of_rank))


@pytest.fixture
def found(both: Any) -> list[dict[str, Any]]:
    return [answer["plain"] for answer in both]


def test_values_and_derivatives_are_those_of_the_mean_of_the_shares(found: Any) -> None:
    model = network()
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = [objective(model, share) for share in SHARES]
    v = random_like(params, torch.Generator().manual_seed(1))
    exact = hessian(losses, params, weights=[0.5, 0.5], retain=True)
    assert found[0]["value"] == pytest.approx(exact.loss_value, rel=1e-12)
    for name, g in exact.gradient.items():
        torch.testing.assert_close(found[0]["gradient"][name], g, rtol=1e-9, atol=1e-12)
    for name, x in exact(v).items():
        torch.testing.assert_close(found[0]["product"][name], x, rtol=1e-9, atol=1e-12)


def test_all_ranks_have_the_same_numbers_to_the_bit(found: Any) -> None:
    one, two = found
    assert one["value"] == two["value"]
    for what in ("gradient", "product"):
        assert all(torch.equal(one[what][n], two[what][n]) for n in one[what])


def test_a_product_on_the_retained_graph_is_one_exchange(found: Any) -> None:
    assert found[0]["sums"] == 1
    assert all(torch.equal(found[0]["product"][n], x) for n, x in found[0]["again"].items())


def test_one_share_alone_has_another_gradient(found: Any) -> None:
    model = network()
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    own = replayed_gradient(objective(model, SHARES[0]), params)
    name = "0.weight"
    assert (own[name] - found[0]["gradient"][name]).norm() > 0.01 * own[name].norm()


def test_synchronised_statistics_are_those_of_the_whole_batch(both: Any) -> None:
    model, (first, second) = network(), SHARES
    params = {n: p.detach().clone() for n, p in model.named_parameters()}

    def weighted(model: nn.Module, batch: Any) -> Tensor:
        (_x, y), outputs = batch, model(batch[0])
        losses = (nn.functional.cross_entropy(outputs[a:b], y[a:b]) for a, b in (first, second))
        return torch.stack([*losses]).mean()

    whole = replace(objective(model, (0, 8)), loss_fn=weighted)
    v = random_like(params, torch.Generator().manual_seed(1))
    exact = hessian(whole, params, retain=True)
    for answer in both:
        seen = answer["synced"]
        assert seen["value"] == pytest.approx(exact.loss_value, rel=1e-12)
        for name, x in exact(v).items():
            torch.testing.assert_close(seen["product"][name], x, rtol=1e-9, atol=1e-12)
