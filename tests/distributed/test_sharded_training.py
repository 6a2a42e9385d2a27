"""A sharded model is evaluated again: training does not notice, and gets the gradient it had."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.func import functional_call

from eqtoolbox.linalg import hessian
from eqtoolbox.linalg.vectors import norm, random_like
from eqtoolbox.replay.gathered import Gathered
from eqtoolbox.replay.gradient import compare, replayed_gradient
from eqtoolbox.replay.window import Window
from eqtoolbox.world.layout import local
from eqtoolbox.world.reducing import reducing
from tests.distributed.ranks import on_ranks, once
from tests.distributed.sharded import (
    apart,
    batch,
    gathered,
    loss_of,
    mesh_of,
    network,
    objective,
    pieces,
    reference,
    shard,
    share,
    world_of,
)


def trained(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """The gradient that training gets, as this rank's shards."""
    model.zero_grad()
    loss_of(model, batch).backward()
    return {n: local(p.grad).clone() for n, p in model.named_parameters() if p.grad is not None}


def unnoticed(kind: str) -> dict[str, Any]:
    """What of the training an evaluation changes; and its own gradient."""
    model, world, loss = gathered(kind, mesh_of(), torch.float64)
    first = trained(model, loss.batch)
    named = dict(model.named_parameters())
    held = {n: local(p).clone() for n, p in named.items()}
    versions, stream = {n: p._version for n, p in named.items()}, torch.get_rng_state()
    count = dist.group.WORLD._get_sequence_number_for_group()
    with world.together("test"), loss.isolated(), reducing(world):
        H = hessian(loss, loss.parameters(), retain=True)
        replayed, _ = H.gradient, H(H.gradient)
    answer = {
        "exchanges of training": dist.group.WORLD._get_sequence_number_for_group() - count,
        "replayed": apart(replayed, first),
        "objects": all(p is q for p, q in zip(named.values(), model.parameters(), strict=True)),
        "entries": all(torch.equal(local(p), held[n]) for n, p in named.items()),
        "gradients": all(torch.equal(local(p.grad), first[n]) for n, p in named.items()),
        "versions": versions == {n: p._version for n, p in named.items()},
        "stream": torch.equal(stream, torch.get_rng_state()),
    }
    again = trained(model, loss.batch)
    answer["next gradient"] = all(torch.equal(again[n], first[n]) for n in first)
    answer["next exchanges"] = dist.group.WORLD._get_sequence_number_for_group() - count
    return answer


def without_adjoint(kind: str) -> dict[str, Any]:
    """The gradient by `full_tensor`, which takes what each rank found for what all of them did."""
    model = shard(network(kind), mesh_of())
    mine = share(batch(kind), dist.get_rank(), 2)
    engine = trained(model, mine)
    leaves = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
    made = functional_call(network(kind), {n: p.full_tensor() for n, p in leaves.items()}, mine[0])
    loss = nn.functional.cross_entropy(made.flatten(0, -2), mine[1].flatten()) / 2
    found = torch.autograd.grad(loss, list(leaves.values()))
    naive = {n: local(g) for n, g in zip(leaves, found, strict=True)}
    check = compare(naive, engine, {n: local(p) for n, p in leaves.items()})
    return {"wrong": apart(naive, engine), "cosine": check.cosine, "cause": check.cause}


def mixed(kind: str) -> dict[str, Any]:
    """Gradients in bfloat16, as trained, and in the parameters' own type."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model, world, loss = gathered(kind, mesh_of(), torch.float32, mp_policy=policy)
    engine = trained(model, loss.batch)
    with world.together("test"), loss.isolated():
        own = replayed_gradient(loss, loss.parameters())
        plain = replayed_gradient(loss.unmixed(), loss.parameters())
        finer = loss.to(torch.float64)
        wide = replayed_gradient(finer, finer.parameters())
    return {
        "engine": engine, "own": own, "plain": plain, "wide": wide, "layout": world.layout
    }  # fmt: skip


def frozen(kind: str) -> dict[str, Any]:
    """A model of which a part does not train."""
    model = network(kind)
    for p in model[0].parameters():
        p.requires_grad_(False)
    mine = share(batch(kind), dist.get_rank(), 2)
    model = shard(model, mesh_of())
    world = world_of(model)
    loss = Gathered.of(objective(model, mine), world)
    engine = trained(model, mine)
    with world.together("test"), loss.isolated():
        params = loss.parameters()
        with torch.no_grad():
            mean, own = float(loss.loss(params)), float(loss.share.loss(params))
        found = replayed_gradient(loss, params)
    with pytest.raises(RuntimeError, match="by all of them together"):
        loss.loss(params)
    return {"wrong": apart(found, engine), "names": [*found], "mean": mean, "share": own}


def accumulated(kind: str) -> dict[str, Any]:
    """Two micro-batches of weights 1/4 and 3/4, and the parts of one."""
    _, world, loss = gathered(kind, mesh_of())
    x, y = loss.batch
    one, other = (replace(loss.own, batch=b) for b in ((x[:2], y[:2]), (x[2:], y[2:])))
    window = Gathered.of(Window.of(((one, 0.25), (other, 0.75))), world)
    params = loss.parameters()
    with world.together("test"), loss.isolated(), torch.no_grad():
        values = [[float(part.loss(params)) for part in many] for many in parts_of(loss)]
        pieces = [float(part.loss(params)) for part in window.pieces]
        return {"values": values, "window": float(window.loss(params)), "pieces": pieces}


def parts_of(loss: Any) -> list[list[Any]]:
    halves = [part for part, _ in loss.split(2)]
    return [[loss], halves, [loss.halved()], [loss.single], loss.calls]


def failing(kind: str) -> dict[str, Any]:
    """One rank fails inside of an evaluation; the next one goes well."""
    _, world, loss = gathered(kind, mesh_of())
    params = loss.parameters()

    def failed(model: nn.Module, batch: Any) -> Tensor:
        if world.rank == 1:
            raise MemoryError("none left")
        return loss_of(model, batch)

    bad = Gathered.of(replace(loss.own, loss_fn=failed), world)
    try:
        with world.together("bad"), bad.isolated():
            bad.loss(params)
    except (torch.OutOfMemoryError, MemoryError) as error:
        said = str(error)
    with world.together("good"), loss.isolated(), torch.no_grad():
        return {"said": said, "value": float(loss.loss(params)), "retired": world.retired}


def infinite(kind: str) -> dict[str, Any]:
    """The gradient is infinite in an entry that one rank holds; the next evaluation goes well."""
    _, world, loss = gathered(kind, mesh_of())
    params = loss.parameters()
    if world.rank == 1:
        params["0.weight"][-1, 0] = 0.0

    def rooted(model: Any, batch: Any) -> Tensor:
        return loss_of(model, batch) + model[0].weight.abs().sqrt().sum()

    bad = Gathered.of(replace(loss.own, loss_fn=rooted), world)
    try:
        with world.together("bad"), bad.isolated(), reducing(world):
            hessian(bad, params).gradient  # noqa: B018
    except FloatingPointError as error:
        said = str(error)
    with world.together("good"), loss.isolated(), torch.no_grad():
        return {"said": said, "value": float(loss.loss(params)), "retired": world.retired}


def offloaded(kind: str) -> dict[str, Any]:
    """Parameters that lie on the host between steps."""
    policy = CPUOffloadPolicy(pin_memory=False)
    model, world, loss = gathered(kind, mesh_of(), offload_policy=policy)
    engine = trained(model, loss.batch)
    with world.together("test"), loss.isolated():
        return {"wrong": apart(replayed_gradient(loss, loss.parameters()), engine)}


def parallel(kind: str) -> dict[str, Any]:
    """A model under tensor parallelism, its products by torch's own double backward and by us."""
    plan = {"2": ColwiseParallel(), "4": RowwiseParallel()}
    model, mine = parallelize_module(network(kind), mesh_of(), plan), batch(kind)
    world = world_of(model)
    loss = Gathered.of(objective(model, mine), world)
    params = loss.parameters()
    with world.together("test"), loss.isolated(), reducing(world):
        H = hessian(loss, params, retain=True)
        v = random_like(params, torch.Generator().manual_seed(1))
        gradient, product, length = H.gradient, H(v), norm(v)
    named: Any = dict(model.named_parameters())
    slopes = torch.autograd.grad(loss_of(model, mine), [*named.values()], create_graph=True)
    along = [
        v[n]
        if not isinstance(p, DTensor)
        else DTensor.from_local(v[n], p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
        for n, p in named.items()
    ]
    torchs = torch.autograd.grad(slopes, [*named.values()], along)
    return {
        "gradient": gradient,
        "product": product,
        "torch": {n: local(h) for n, h in zip(named, torchs, strict=True)},
        "norm": length,
        "layout": world.layout,
        "shares": world.size,
    }


def of_two(rank: int) -> dict[str, Any]:
    return {
        "unnoticed": {kind: unnoticed(kind) for kind in ("relu", "checkpointed", "images")},
        "full_tensor": without_adjoint("gelu"),
        "mixed": mixed("gelu"),
        "frozen": frozen("dense"),
        "parallel": parallel("even"),
        "accumulated": accumulated("even"),
        "failing": failing("even"),
        "infinite": infinite("even"),
        "offloaded": offloaded("even"),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return once(tmp_path_factory, "sharded_training", lambda _: on_ranks(2, of_two))


def test_training_does_not_notice_and_its_gradient_is_ours(two: Any) -> None:
    for rank in two:
        for found in rank["unnoticed"].values():
            assert found.pop("replayed") < 1e-12
            assert found.pop("exchanges of training") == 0
            assert found.pop("next exchanges") > 0
            assert [what for what, kept in found.items() if not kept] == []


def test_a_gather_without_its_adjoint_is_wrong_and_the_check_catches_it(two: Any) -> None:
    for found in (rank["full_tensor"] for rank in two):
        assert found["wrong"] > 0.3
        assert found["cosine"] < 0.99
        assert found["cause"]


def test_mixed_precision_is_that_of_training_and_unmixed_is_none(two: Any) -> None:
    losses = reference("gelu", 2, torch.float32)
    params = {n: p.detach().clone() for n, p in losses[0].model.named_parameters()}
    exact = hessian(losses, params, weights=[1.0, 1.0], retain=True).gradient
    for found in (rank["mixed"] for rank in two):
        whole = pieces(exact, found["layout"])
        assert apart(found["engine"], whole) > 1e-3
        assert apart(found["own"], found["engine"]) < 0.01  # bfloat16 has 8 bits
        assert apart(found["plain"], whole) < 1e-6
        assert apart(found["wide"], whole) < 1e-6


def test_what_does_not_train_is_gathered_too_and_a_share_has_its_own_value(two: Any) -> None:
    one, other = (rank["frozen"] for rank in two)
    assert max(one["wrong"], other["wrong"]) < 1e-12
    assert one["names"] == other["names"] == ["2.weight", "2.bias", "3.weight", "3.bias"]
    assert one["mean"] == other["mean"] == pytest.approx((one["share"] + other["share"]) / 2)
    assert one["share"] != other["share"]


def test_products_under_tensor_parallelism_are_exact_where_double_backward_is_wrong(
    two: Any,
) -> None:
    (loss,) = reference("even", 1)
    params = {n: p.detach().clone() for n, p in loss.model.named_parameters()}
    H, v = hessian(loss, params), random_like(params, torch.Generator().manual_seed(1))
    gradient, product = H.gradient, H(v)
    for found in (rank["parallel"] for rank in two):
        assert found["shares"] == 1  # of the batch
        assert found["norm"] == pytest.approx(norm(v), rel=1e-12)
        assert apart(found["gradient"], pieces(gradient, found["layout"])) < 1e-12
        assert apart(found["product"], pieces(product, found["layout"])) < 1e-12
        assert apart(found["torch"], pieces(product, found["layout"])) > 0.1


def test_pieces_and_micro_batches_are_those_of_all_ranks(two: Any) -> None:
    for found in (rank["accumulated"] for rank in two):
        (loss,), halves, (first,), (single,), (call,) = found["values"]
        assert loss == pytest.approx(sum(halves) / 2, rel=1e-12)
        assert first == pytest.approx(halves[0], rel=1e-12)
        assert loss == single == call
        assert found["window"] == pytest.approx(sum(found["pieces"]), rel=1e-12)
        assert found["pieces"] == pytest.approx([0.25 * halves[0], 0.75 * halves[1]], rel=1e-12)
    assert two[0]["accumulated"] == two[1]["accumulated"]


def test_a_rank_that_fails_leaves_none_waiting_and_the_next_evaluation_goes_well(two: Any) -> None:
    for found in (rank["failing"] for rank in two):
        assert "none left" in found["said"]
        assert not found["retired"]
        assert found["value"] == two[0]["accumulated"]["values"][0][0]


def test_an_infinity_that_one_rank_holds_is_one_for_all_and_keeps_them_in_step(two: Any) -> None:
    for found in (rank["infinite"] for rank in two):
        assert "gradient is not finite" in found["said"]
        assert not found["retired"]
        assert found["value"] == two[0]["infinite"]["value"]


def test_parameters_on_the_host_are_gathered_where_the_model_computes(two: Any) -> None:
    assert all(rank["offloaded"]["wrong"] < 1e-12 for rank in two)
