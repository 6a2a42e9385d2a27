"""Laws of lookups: values are torch's, gradients of a replay are dense and differentiate twice."""

import copy
from collections.abc import Callable
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
