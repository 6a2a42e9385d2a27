"""Directions of outputs: heard where something divides by lengths, and in no other place."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.watch.vitals.directions import Directed, direction_spread
from eqtoolbox.watch.vitals.evaluation import listen

torch.manual_seed(0)
NET, A, B = nn.Linear(4, 6), torch.randn(16, 4), torch.randn(16, 4)
Z, W = NET(A).detach(), NET(B).detach()
Loss = Callable[[], object]


def of(x: Tensor) -> float:
    """The mean of 1 - cosine over all pairs of different samples, as it is defined."""
    x = x.detach().double()
    cosines = F.cosine_similarity(x[:, None], x[None], dim=-1)
    return float((1 - cosines).sum() / (len(x) * (len(x) - 1)))


def told(run: Loss, model: nn.Module = NET, batch: Iterable[Tensor] = ()) -> Directed | None:
    return listen(run, dict(model.named_parameters()), model, batch).directed


def test_the_spread_is_the_mean_over_pairs_and_no_length_changes_it() -> None:
    assert direction_spread(Z) == pytest.approx(of(Z), rel=1e-9)
    assert direction_spread(Z * torch.rand(16, 1)) == pytest.approx(of(Z), rel=1e-6)
    assert direction_spread(Z.T, dim=0) == pytest.approx(of(Z), rel=1e-9)
    assert direction_spread(Z[:, None].expand(16, 5, 6)) == pytest.approx(of(Z), rel=1e-9)


def test_one_direction_of_many_lengths_has_no_spread_and_random_ones_have_one() -> None:
    lengths = torch.logspace(-20, 4, 50)[:, None]
    assert direction_spread(lengths * Z[:1]) < 1e-12
    many = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert direction_spread(many) == pytest.approx(1.0, abs=0.02)
    assert direction_spread(torch.cat([many, torch.zeros(64, 64)])) == direction_spread(many)
    assert math.isnan(direction_spread(torch.zeros(8, 3)))


BOTH = torch.cat([Z, W])
FORMS: dict[str, tuple[Loss, Iterable[Tensor]]] = {
    "normalize": (lambda: F.normalize(NET(A), dim=-1), (Z,)),
    "cosine_similarity": (lambda: F.cosine_similarity(NET(A), NET(B).detach()), (Z, W)),
    "of all pairs": (lambda: F.cosine_similarity((z := NET(A))[:, None], z[None], dim=-1), (Z,)),
    "cosine_embedding": (
        lambda: F.cosine_embedding_loss(NET(A), NET(B), torch.ones(16)),
        (Z, W),
    ),
    "norm": (lambda: (z := NET(A)) / z.norm(dim=-1, keepdim=True), (Z,)),
    "norm of rows": (lambda: (z := NET(A)) / torch.linalg.norm(z, dim=1)[:, None], (Z,)),
    "square root": (lambda: (z := NET(A)) / (z * z).sum(-1, keepdim=True).sqrt(), (Z,)),
    "inverse": (lambda: (z := NET(A)) * ((z**2).sum(-1, keepdim=True) + 1e-9).rsqrt(), (Z,)),
    "reciprocal": (lambda: (z := NET(A)) * z.norm(dim=-1, keepdim=True).reciprocal(), (Z,)),
    "matrix": (lambda: (z := NET(A)) @ z.T / torch.outer(z.norm(dim=1), z.norm(dim=1)), (Z,)),
    "joined": (lambda: F.normalize(torch.cat([NET(A), NET(B)]), dim=-1), (BOTH,)),
    "chunks": (lambda: F.normalize(NET(torch.cat([A, B])).chunk(2)[0], dim=-1), (Z,)),
}


@pytest.mark.parametrize("form", FORMS)
def test_outputs_that_are_divided_by_their_length_are_heard(form: str) -> None:
    run, expected = FORMS[form]
    found = told(run)
    assert found is not None
    assert found.spread == pytest.approx(max(map(of, expected)), rel=1e-5)


OTHERS: dict[str, Loss] = {
    "nothing": lambda: NET(A).square().mean(),
    "squared length": lambda: (z := NET(A)) / (z * z).sum(-1, keepdim=True),
    "length of another": lambda: NET(A) / NET(B).norm(dim=-1, keepdim=True),
    "columns": lambda: F.normalize(NET(A), dim=0),
    "the whole": lambda: (z := NET(A)) / z.norm(),
    "weights": lambda: NET(A) @ F.normalize(NET.weight, dim=1),
    "sum of absolutes": lambda: F.normalize(NET(A), p=1.0, dim=-1),
    "layer norm": lambda: F.layer_norm(NET(A), (6,)),
    "powers of its own": lambda: (z := NET(A).exp()) / z.pow(z),
    "lengths alone": lambda: NET(A).norm(dim=-1).mean(),
}


@pytest.mark.parametrize("form", OTHERS)
def test_what_is_divided_by_something_else_is_not_heard(form: str) -> None:
    assert told(OTHERS[form]) is None


class Unit(nn.Module):
    """Divides by the length at its end, or before its last layer."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.first, self.head, self.last = nn.Linear(4, 6), nn.Linear(6, 6), last

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return F.normalize(self.head(h), dim=-1) if self.last else self.head(F.normalize(h, dim=-1))


class OwnLoss(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return -F.cosine_similarity(self.net(x), self.net(y)).mean()


def test_what_a_model_divides_counts_where_it_gives_that_out_or_its_loss() -> None:
    last, before = Unit(last=True), Unit(last=False)
    found = told(lambda: (last(A) @ last(B).T).mean(), last)
    assert found is not None
    assert found.spread == pytest.approx(max(of(last(A)), of(last(B))), rel=1e-5)
    assert told(lambda: before(A).mean(), before) is None
    own = OwnLoss(NET)
    found = told(lambda: own(A, B), own)
    assert found is not None and found.spread == pytest.approx(max(of(Z), of(W)), rel=1e-5)


def test_transformations_of_a_model_hide_no_later_division() -> None:
    def loss() -> Tensor:
        slopes = torch.func.vmap(torch.func.grad(lambda x: NET(x).sum()))(A)
        return slopes.sum() + F.normalize(NET(A), dim=-1).sum()

    found = told(loss)
    assert found is not None and found.spread == pytest.approx(of(Z), rel=1e-5)


def test_a_teacher_is_told_apart_and_targets_of_the_batch_are_no_outputs() -> None:
    teacher = nn.Linear(4, 6)
    found = told(lambda: F.cosine_similarity(NET(A), teacher(A)))
    assert found is not None
    assert found.spread == pytest.approx(of(Z), rel=1e-5)
    assert found.other == pytest.approx(of(teacher(A)), rel=1e-5)
    y = torch.randn(16, 6)
    assert told(lambda: F.cosine_similarity(NET(A), y), batch=(A, y)) is None
    assert told(lambda: F.cosine_similarity(NET(A), y), batch=(A,)) is not None


@pytest.mark.parametrize("divides", [True, False])
def test_a_run_has_directions_only_where_its_loss_sees_no_length(
    divides: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(4, 6), torch.randn(32, 4)
    expected = max(of(net(x)), of(net(x + 0.1)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def alike(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        one, two = model(batch[0]), model(batch[1])
        if divides:
            return -F.cosine_similarity(one, two).mean()
        return (one - two).square().mean()

    with eq.attach(net, optimizer, run_dir=tmp_path, budget=None, schedule=2) as monitor:
        loss = monitor.loss(alike)
        for _ in range(4):
            loss(net, (x, x + 0.1)).backward()
            optimizer.step()
            optimizer.zero_grad()
    run = eq.Run(tmp_path)
    assert ("vital/direction_spread" in run) is divides
    if divides:
        assert run.records("vital/direction_spread")[0].value == pytest.approx(expected, rel=1e-5)
