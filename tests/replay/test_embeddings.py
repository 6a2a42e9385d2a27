"""Laws of lookups: values are torch's, gradients of a replay are dense and differentiate twice."""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.replay.embeddings import embedding_bag
from eqtoolbox.replay.operations import Operations
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.capture.watched import gradients_are_clear

ROWS, WIDTH = 9, 4
WHOLE = torch.randint(0, ROWS, (5, 3), generator=torch.Generator().manual_seed(0))
FLAT = WHOLE.reshape(-1)
WEIGHTS = torch.rand(5, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize(
    "given",
    [
        {"input": WHOLE},
        {"input": WHOLE, "padding_idx": 2},
        {"input": WHOLE, "padding_idx": -2},
        {"input": FLAT, "offsets": torch.tensor([0, 4, 4, 9])},
        {"input": FLAT, "offsets": torch.tensor([0, 4, 9, 15]), "include_last_offset": True},
        {"input": WHOLE.int()},
        {"input": FLAT[:0], "offsets": torch.tensor([0])},
    ],
    ids=["rows", "padding", "padding from the end", "offsets", "last offset", "int32", "empty bag"],
)
def test_bags_are_those_of_torch(mode: str, given: dict[str, Any]) -> None:
    table = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(2))
    made, want = (f(weight=table, mode=mode, **given) for f in (embedding_bag, F.embedding_bag))
    torch.testing.assert_close(made, want)


def test_weighted_bags_are_those_of_torch() -> None:
    table = torch.randn(ROWS, WIDTH)
    for function in (F.embedding_bag, embedding_bag):
        made = function(WHOLE, table, mode="sum", per_sample_weights=WEIGHTS)
        torch.testing.assert_close(made, (table[WHOLE] * WEIGHTS[..., None]).sum(1))


LOOKUPS: dict[str, Callable[[Tensor], Tensor]] = {
    "embedding": lambda t: F.embedding(WHOLE, t, sparse=True),
    "torch.embedding": lambda t: torch.embedding(t, WHOLE, -1, False, True),
    "bag": lambda t: F.embedding_bag(WHOLE, t, mode="mean", sparse=True),
    "gather": lambda t: torch.gather(t, 0, WHOLE[:, :1], sparse_grad=True),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_gradients_of_a_replay_are_dense_and_differentiate_twice(name: str) -> None:
    table = torch.randn(ROWS, WIDTH, requires_grad=True)
    with Operations():
        loss = LOOKUPS[name](table).tanh().sum()
        (first,) = torch.autograd.grad(loss, table, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), table)
    assert (first.layout, second.layout) == (torch.strided, torch.strided)


@pytest.mark.parametrize("name", LOOKUPS)
def test_outside_of_a_replay_gradients_are_sparse(name: str) -> None:
    """Negative control: what the replay takes away is there."""
    table = torch.randn(ROWS, WIDTH, requires_grad=True)
    (first,) = torch.autograd.grad(LOOKUPS[name](table).tanh().sum(), table)
    assert first.layout == torch.sparse_coo


LIMITED: dict[str, Callable[[Tensor], Tensor]] = {
    "embedding": lambda t: F.embedding(WHOLE, t, max_norm=1.5),
    "norm 1": lambda t: F.embedding(WHOLE, t, 2, 1.5, 1.0, True),
    "largest entry": lambda t: F.embedding(WHOLE, t, max_norm=1.0, norm_type=math.inf),
    "bag": lambda t: F.embedding_bag(WHOLE, t, max_norm=1.5, mode="sum"),
    "largest of a bag": lambda t: F.embedding_bag(WHOLE, t, max_norm=1.5, mode="max"),
}


@pytest.mark.parametrize("name", LIMITED)
def test_long_rows_are_shortened_in_what_a_replay_looks_up_and_not_in_the_table(name: str) -> None:
    values = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(3))
    made = []
    for mode in (Operations(), nullcontext()):
        table = values.clone().requires_grad_()
        with mode:
            rows = LIMITED[name](table)
            (slope,) = torch.autograd.grad(rows.tanh().sum(), table)
        made.append((rows, slope, table.detach()))
    (rows, slope, kept), (want, of_torch, written) = made
    torch.testing.assert_close((rows, slope), (want, of_torch))
    assert torch.equal(kept, values)
    assert not torch.equal(written, values), "torch's own writes"


LABELS = WHOLE[:, 0] % 3


class Limited(nn.Sequential):
    """Reads rows of at most length 1 from a table that has longer ones."""

    def __init__(self) -> None:
        table = nn.Embedding(ROWS, WIDTH, max_norm=1.0)
        super().__init__(table, nn.Tanh(), nn.Flatten(), nn.Linear(3 * WIDTH, 3))


def limited(watched: bool) -> tuple[nn.Module, MemorySink]:
    torch.manual_seed(0)
    model = Limited()
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.5), MemorySink()
    one = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])
    how = {"probes": "standard", "budget": None, "schedule": 1, "on_error": "raise"}
    monitor = eq.attach(model, optimizer, **how, sinks=[sink]) if watched else None
    loss = monitor.loss(one) if monitor else one
    for _ in range(3):
        optimizer.zero_grad()
        loss(model, (WHOLE, LABELS)).backward()
        optimizer.step()
    if monitor:
        monitor.close()
    return model, sink


def test_a_table_of_limited_rows_is_measured_and_trains_as_without_a_monitor() -> None:
    (model, sink), (alone, _) = limited(True), limited(False)
    assert all(map(torch.equal, model.state_dict().values(), alone.state_dict().values()))
    assert {r.status for r in sink.records} <= {"ok", "not_applicable"}
    values = {r.name: r.value for r in sink.records if r.step == 0}
    assert values["monitor/closure_grad_cos"] == pytest.approx(1.0, abs=1e-6)
    assert values["monitor/closure_grad_ratio"] == pytest.approx(1.0, abs=1e-5)


def test_products_are_of_the_loss_at_the_shortened_rows() -> None:
    torch.manual_seed(0)
    model = Limited()
    with torch.no_grad():
        model(WHOLE)  # writes
    at = {n: p.detach().double() for n, p in model.named_parameters()}
    flat = torch.cat([p.reshape(-1) for p in at.values()])

    def of_vector(x: Tensor) -> Tensor:
        rows = x.split([p.numel() for p in at.values()])
        table, w, b = (r.view_as(p) for r, p in zip(rows, at.values(), strict=True))
        return F.cross_entropy(table[WHOLE].tanh().flatten(1) @ w.T + b, LABELS)

    top = torch.linalg.eigvalsh(torch.func.hessian(of_vector)(flat))[-1].item()
    _, sink = limited(watched=True)
    values = {r.name: r for r in sink.records if r.step == 0}
    assert values["curvature/sharpness"].value == pytest.approx(top, rel=1e-3)
    assert "max_norm cut it off" in values["discrete/self_test/asymmetry"].note


def test_a_sparse_gradient_that_was_added_to_is_seen() -> None:
    model = nn.Embedding(ROWS, WIDTH, sparse=True)
    assert gradients_are_clear(model.parameters())
    for _ in range(2):
        model(WHOLE).sum().backward()
    assert not model.weight.grad.is_coalesced()
    assert not gradients_are_clear(model.parameters())
    model.zero_grad(set_to_none=False)
    assert gradients_are_clear(model.parameters())


class Sparse(nn.Module):
    """A sparse table and sparse bags; the dense twin has the same functions and parameters."""

    def __init__(self, sparse: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(12, WIDTH, sparse=sparse)
        self.bag = nn.EmbeddingBag(ROWS, WIDTH, sparse=sparse, mode="sum")
        self.head, self.sparse = nn.Linear(WIDTH, 3), sparse

    def forward(self, i: Tensor, j: Tensor) -> Tensor:
        bags = self.bag(j) if self.sparse else self.bag.weight[j].sum(1)
        return self.head(torch.tanh(self.table(i).mean(1)) * torch.tanh(bags))


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0], batch[1]), batch[2])


def batches() -> list[Any]:
    draw = torch.Generator().manual_seed(4)
    sizes = ((12, (16, 5)), (ROWS, (16, 3)), (3, (16,)))
    return [tuple(torch.randint(0, n, s, generator=draw) for n, s in sizes) for _ in range(2)]


def test_every_probe_works_on_sparse_gradients_of_several_micro_batches() -> None:
    torch.manual_seed(0)
    model, sink = Sparse(), MemorySink()
    before = copy.deepcopy(model.state_dict())
    optimizers = [
        torch.optim.SparseAdam([model.table.weight, model.bag.weight], lr=0.01),
        torch.optim.Adam(model.head.parameters(), lr=0.01),
    ]
    with eq.attach(
        model, optimizers, probes="standard", budget=None, schedule=1, sinks=[sink],
        on_error="raise",
    ) as monitor:  # fmt: skip
        watched = monitor.loss(loss_fn)
        for _ in range(2):
            for optimizer in optimizers:
                optimizer.zero_grad()
            for batch in batches():
                (watched(model, batch) / 2).backward()
            for optimizer in optimizers:
                optimizer.step()
    first = {r.name: r for r in sink.records if r.step == 0}
    assert first["monitor/closure_grad_cos"].value == pytest.approx(1.0, abs=1e-6)
    assert {r.status for r in sink.records} <= {"ok", "not_applicable"}
    twin = Sparse(sparse=False)
    twin.load_state_dict(before)
    twin.double()
    params = dict(twin.named_parameters())
    losses = batches()
    whole = lambda p: sum(
        F.cross_entropy(torch.func.functional_call(twin, p, b[:2]), b[2]) / 2 for b in losses
    )
    flat = torch.cat([p.detach().reshape(-1) for p in params.values()])

    def of_vector(x: Tensor) -> Tensor:
        rows = x.split([p.numel() for p in params.values()])
        return whole({n: r.view_as(p) for (n, p), r in zip(params.items(), rows, strict=True)})

    top = torch.linalg.eigvalsh(torch.func.hessian(of_vector)(flat))[-1].item()
    assert first["curvature/eigenvalue/1"].value == pytest.approx(top, rel=1e-4)
