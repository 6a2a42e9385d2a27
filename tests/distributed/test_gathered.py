"""The loss of a sharded model: exact derivatives of all ranks' loss as functions of shards."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from eqtoolbox.linalg import (
    Tracker,
    finite_difference,
    hessian,
    spectral_density,
    top_eigenpairs,
    vectors,
)
from eqtoolbox.linalg.vectors import dot, norm, random_like
from eqtoolbox.replay.gathering import Gathering
from eqtoolbox.replay.objective import Objective
from eqtoolbox.world.placement import placement_of
from eqtoolbox.world.reducing import reducing
from tests.distributed.ranks import on_ranks, once
from tests.distributed.sharded import (
    MODELS,
    apart,
    gathered,
    mesh_of,
    network,
    pieces,
    reference,
    shard,
)

KINDS = tuple(kind for kind in MODELS if kind != "even")
PATH = (0.0, 0.01, 0.02)  # along which a tracker follows
SMALL = {torch.float64: 1e-12, torch.float32: 1e-6}
SETTINGS = ("two shards", "two shards, float32", "blocks alone", "two copies of two shards")

Params = dict[str, Tensor]


def drawn(params: Params) -> Params:
    return random_like(params, torch.Generator().manual_seed(1))


def moved(params: Params, by: float) -> Params:
    return {n: p + by * p.abs() for n, p in params.items()}


def whole(losses: list[Objective]) -> Params:
    return {n: p.detach().clone() for n, p in losses[0].model.named_parameters()}


def derivatives(
    kind: str, dtype: torch.dtype, copies: int = 1, root: bool = True
) -> dict[str, Any]:
    """Of a model of which all is cut, or its blocks alone."""
    _, world, loss = gathered(kind, mesh_of(copies), dtype, root=root)
    params = loss.parameters()
    with world.together("test"), loss.isolated(), reducing(world):
        H = hessian(loss, params, retain=True)
        gradient, v = H.gradient, drawn(params)
        before = dict(world.exchanged)
        product = H(v)
        after = dict(world.exchanged)
        again = H(v)
        length, kept = norm(v), loss.gathering.alive
    return {
        "kept": kept,
        "norm": length,
        "value": H.loss_value,
        "gradient": gradient,
        "product": product,
        "layout": world.layout,
        "same": all(torch.equal(product[n], again[n]) for n in product),
        "peak": loss.gathering.peak,
        "blocks": [sum(world.layout[n].whole.numel() for n in b.names) for b in world.blocks],
        "exchanges": {k: n - before.get(k, 0) for k, n in after.items()},
    }


def spectra(kind: str) -> dict[str, Any]:
    _, world, loss = gathered(kind, mesh_of(), torch.float64)
    params = loss.parameters()
    with world.together("test"), loss.isolated():
        with reducing(world):
            H = hessian(loss, params, retain=True)
            before = world.exchanged.get("totals along shard", 0)
            top = top_eigenpairs(H, 3, tol=1e-4)
            totals = world.exchanged["totals along shard"] - before
            nodes, v = density(H), drawn(params)
            tracked = followed(lambda p: hessian(loss, p, retain=True), params)
            length, size = norm(v), H.size
        alone, naive = dot(v, v) ** 0.5, ""
        try:
            top_eigenpairs(H, 1, start=top.vectors[0])
        except ValueError as error:
            naive = str(error)
    return {
        "top": top.values, "matvecs": top.matvecs, "totals": totals / top.matvecs, "nodes": nodes,
        "tracked": tracked, "norm": length, "size": size, "alone": alone, "naive": naive,
    }  # fmt: skip


def density(H: Any) -> Tensor:
    found = spectral_density(H, generator=torch.Generator().manual_seed(2), probes=2, steps=8)
    return found.nodes


def streams(kind: str) -> dict[str, Any]:
    """Random pieces of tensors that are too large to be drawn as a whole."""
    _, world, loss = gathered(kind, mesh_of())
    limit, vectors.DRAWN = vectors.DRAWN, 0
    with world.together("test"), reducing(world):
        one, two = (drawn(loss.parameters()) for _ in range(2))
    vectors.DRAWN = limit
    return {"same": all(torch.equal(one[n], two[n]) for n in one), "piece": one["0.weight"]}


def followed(operator: Callable[[Params], Any], params: Params) -> list[float]:
    tracker = Tracker(k=2)
    return [tracker.update(operator(moved(params, by))).value for by in PATH]


def differenced(kind: str) -> dict[str, Any]:
    _, world, loss = gathered(kind, mesh_of(), torch.float32)
    params = loss.parameters()
    with world.together("test"), loss.isolated(), reducing(world):
        return {"product": finite_difference(loss, params)(drawn(params)), "layout": world.layout}


def keeping(kind: str) -> dict[str, Any]:
    """The same, where graphs keep the tensors that operations save."""
    original = Gathering._stored
    Gathering._stored = lambda _, t: t  # type: ignore[method-assign]
    try:
        return derivatives(kind, torch.float64)
    finally:
        Gathering._stored = original  # type: ignore[method-assign]


def refused() -> list[str]:
    """What is said of placements that are not taken."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    data, model = mesh["data"], mesh["model"]
    plan = {"2": ColwiseParallel(), "4": RowwiseParallel()}
    cut = parallelize_module(network("even"), model, plan)
    both = fully_shard(parallelize_module(network("even"), model, plan), mesh=data)
    language = network("gelu")
    fully_shard(language.blocks[0], mesh=data)
    apart = fully_shard(language, mesh=model)
    gathered_now: Any = shard(network("even"), mesh_of())
    gathered_now.unshard()
    return [_said(one) for one in (cut, both, apart, gathered_now)]


def _said(model: Any) -> str:
    with pytest.raises(TypeError) as error:
        placement_of(model)
    return str(error.value)


def of_two(rank: int) -> dict[str, Any]:
    one = {k: derivatives(k, torch.float64) for k in KINDS}
    two = {k: derivatives(k, torch.float32) for k in ("relu", "images")}
    return {
        SETTINGS[0]: one,
        SETTINGS[1]: two,
        SETTINGS[2]: {"gelu": derivatives("gelu", torch.float64, root=False)},
        "spectra": spectra("gelu"),
        "differences": differenced("gelu"),
        "keeping": keeping("gelu"),
        "streams": streams("even"),
    }


def of_four(rank: int) -> dict[str, Any]:
    made = {k: derivatives(k, torch.float64, 2) for k in ("gelu", "dense")}
    return {SETTINGS[3]: made, "refused": refused()}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return once(tmp_path_factory, "gathered_two", lambda _: on_ranks(2, of_two))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return once(tmp_path_factory, "gathered_four", lambda _: on_ranks(4, of_four))


@pytest.fixture(params=SETTINGS)
def ranks(request: Any) -> list[dict[str, Any]]:
    """What each of the ranks of a setting found, by the kind of its model."""
    made = request.getfixturevalue("four" if request.param == SETTINGS[3] else "two")
    return [rank[request.param] for rank in made]


def test_value_gradient_and_products_are_those_of_one_process(ranks: Any) -> None:
    for kind, first in ranks[0].items():
        dtype = next(iter(first["product"].values())).dtype
        losses = reference(kind, len(ranks), dtype)
        params = whole(losses)
        H = hessian(losses, params, weights=[1.0] * len(ranks), retain=True)
        gradient, product, small = H.gradient, H(drawn(params)), SMALL[dtype]
        for mine in (rank[kind] for rank in ranks):
            assert mine["value"] == pytest.approx(H.loss_value, rel=small)
            assert mine["norm"] == pytest.approx(norm(drawn(params)), rel=1e-12)
            assert apart(mine["gradient"], pieces(gradient, mine["layout"])) < small
            assert apart(mine["product"], pieces(product, mine["layout"])) < small


def test_a_product_is_repeated_to_the_bit_and_holds_one_block_of_weights(ranks: Any) -> None:
    """And the graph that is kept for products holds none."""
    for rank in ranks:
        for one in rank.values():
            assert one["same"]
            assert one["kept"] == 0
            assert 0 < one["peak"] <= max(one["blocks"])


def test_a_graph_that_keeps_what_operations_save_holds_all_weights(two: Any) -> None:
    for found in (rank["keeping"] for rank in two):
        assert found["kept"] > max(found["blocks"])
        assert found["peak"] > max(found["blocks"])


def test_placements_that_cannot_be_evaluated_again_are_refused_by_name(four: Any) -> None:
    for rank in four:
        cut, both, apart, whole = rank["refused"]
        assert "together with data parallelism" in cut
        assert "tensor parallelism" in both
        assert "sharded over different ranks" in apart
        assert "is whole at the moment" in whole


def test_a_product_exchanges_blocks_and_not_parameters(ranks: Any) -> None:
    """Of each reading of a block v, the product, and the weights at most twice."""
    first = ranks[0]
    one = first["gelu" if "gelu" in first else "relu"]["exchanges"]
    gathers = sum(n for k, n in one.items() if k.startswith("gather"))
    scatters = sum(n for k, n in one.items() if k.startswith("scatter"))
    assert 2 <= scatters <= 4  # two blocks, and the words at the beginning and at the end
    assert gathers <= 3 * scatters


def test_copies_of_a_shard_have_the_same_numbers_to_the_bit(four: Any) -> None:
    ranks = [rank[SETTINGS[3]] for rank in four]
    for kind in ranks[0]:
        for what in ("gradient", "product"):
            for one, other in ((0, 2), (1, 3)):
                a, b = ranks[one][kind][what], ranks[other][kind][what]
                assert all(torch.equal(a[n], b[n]) for n in a)


def test_eigenvalues_density_and_tracking_on_shards_are_those_of_one_process(two: Any) -> None:
    losses = reference("gelu", 2)
    params = whole(losses)

    def operator(at: Params) -> Any:
        return hessian(losses, at, weights=[1.0, 1.0], retain=True)

    H, v = operator(params), drawn(params)
    top, nodes, values = top_eigenpairs(H, 3, tol=1e-4), density(H), followed(operator, params)
    for found in (rank["spectra"] for rank in two):
        torch.testing.assert_close(found["top"], top.values, rtol=1e-5, atol=0)
        torch.testing.assert_close(found["nodes"], nodes, rtol=1e-5, atol=1e-9)
        assert found["tracked"] == pytest.approx(values, rel=1e-5)
        assert found["matvecs"] == top.matvecs
        assert found["norm"] == pytest.approx(norm(v), rel=1e-12)
        assert found["size"] == H.size
        assert found["totals"] < 7  # a product


def test_every_piece_of_a_large_random_tensor_has_a_stream_of_its_own(two: Any) -> None:
    one, other = (rank["streams"] for rank in two)
    assert one["same"]
    assert other["same"]
    rows = min(len(one["piece"]), len(other["piece"]))
    assert not torch.equal(one["piece"][:rows], other["piece"][:rows])


def test_inner_products_of_one_shard_alone_are_others_and_lanczos_sees_it(two: Any) -> None:
    for found in (rank["spectra"] for rank in two):
        assert found["alone"] < 0.9 * found["norm"]
        assert "the operator must be symmetric" in found["naive"]


def test_differences_of_gradients_on_shards_are_products(two: Any) -> None:
    losses = reference("gelu", 2)
    params = whole(losses)
    exact = hessian(losses, params, weights=[1.0, 1.0], retain=True)(
        {n: v.double() for n, v in drawn({n: p.float() for n, p in params.items()}).items()}
    )
    for found in (rank["differences"] for rank in two):
        assert apart(found["product"], pieces(exact, found["layout"])) < 1e-4
