"""A second derivative that is not finite: where, what to do, and differences where they hold."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.record import Record
from eqtoolbox.sinks.memory import MemorySink


class Norm(nn.Module):
    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.norm(dim=self.dim)


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x).log().sum(-1)


def net(*last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), *last)


def inputs() -> Tensor:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    x[1] = x[0]  # anchor and positive are the same sample
    return x


def distances(model: nn.Module, x: Tensor) -> Tensor:
    e = model(x)
    return ((e[:, None] - e[None]).norm(dim=-1).mean() - 1) ** 2


def masked_distances(model: nn.Module, x: Tensor) -> Tensor:
    e = model(x)
    squares = (e[:, None] - e[None]).square().sum(-1)
    apart = squares > 1e-20
    return (torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0).mean() - 1) ** 2


def rows(model: nn.Module, loss_fn: Callable[..., Tensor], x: Tensor) -> dict[str, Record]:
    sink, optimizer = MemorySink(), torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(
        model, optimizer, probes=[Curvature(k=1)], schedule=1, budget=None, sinks=[sink]
    ) as monitor:
        monitor.loss(loss_fn)(model, x).backward()
        optimizer.step()
    return {r.name: r for r in sink.records}


def extremes(model: nn.Module, loss_fn: Callable[..., Tensor], x: Tensor) -> list[float]:
    """Of the Hessian in float64, by plain double backward."""
    model, x = model.double(), x.double()
    params = [*model.parameters()]
    gradient = torch.autograd.grad(loss_fn(model, x), params, create_graph=True)
    columns = [
        torch.cat([c.reshape(-1) for c in torch.autograd.grad(
            e, params, retain_graph=True, materialize_grads=True)])
        for g in gradient for e in g.reshape(-1)
    ]  # fmt: skip
    values = torch.linalg.eigvalsh(torch.stack(columns))
    return [float(values[-1]), float(values[0])]


def test_distances_of_equal_samples_are_differenced_and_named() -> None:
    found = rows(net(), distances, inputs())
    truth = extremes(net(), masked_distances, inputs())
    got = [found["curvature/sharpness"], found["curvature/smallest"]]
    assert [r.value for r in got] == pytest.approx(truth, rel=1e-3)
    assert {(r.status, r.hessian) for r in got} == {("ok", "differenced")}
    note = found["curvature/self_test/repeat"].note
    assert "second derivative is not finite" in note
    assert "first in linalg_vector_norm;" in note and "eps" in note and "mask" in note


def test_masked_distances_are_exact() -> None:
    """Must fail: the remedy that the message names."""
    found = rows(net(), masked_distances, inputs())
    assert found["curvature/sharpness"].hessian is None
    assert found["curvature/self_test/repeat"].note.startswith("exact")


def test_a_norm_at_its_kink_is_refused_with_module_and_remedy() -> None:
    """Zero embeddings: the gradient jumps there, so that no differences replace the NaN."""
    model = net(Norm())
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()
    row = rows(model, lambda m, x: (m(x) + 1).square().mean(), inputs())["curvature/sharpness"]
    assert row.status == "not_applicable"
    assert "first in linalg_vector_norm of module 3;" in row.note
    assert "no differences in its place" in row.note and "eps" in row.note


@pytest.mark.filterwarnings("ignore:eqtoolbox")
@pytest.mark.parametrize(
    ("last", "order", "operation"),
    [(Logarithm, "the loss is not finite", "log"), (None, "the gradient is not finite", "sqrt")],
)
def test_the_derivative_that_is_not_finite_is_said(last: Any, order: str, operation: str) -> None:
    model = net(*([last()] if last else []))
    zero = lambda m, x: m(x).mean() if last else (m(x) - m(x)).sqrt().sum()
    row = rows(model, zero, inputs())["curvature/sharpness"]
    assert row.status == "non_finite"
    assert f"{order}" in row.note and f"first in {operation}" in row.note


def test_a_kink_met_after_the_self_test_is_told_in_words_and_is_no_failure() -> None:
    """The angle of (0, 0): differences are smooth along one direction and not along the next."""
    torch.manual_seed(1)
    x = torch.randn(12, 3)
    x[0] = 0
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False))
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.01), MemorySink()
    with eq.attach(
        model, optimizer, probes=[Curvature()], schedule=1, budget=None, sinks=[sink],
        on_error="raise",
    ) as monitor:  # fmt: skip
        loss = monitor.loss(lambda m, x: torch.atan2(m(x)[:, 0], m(x)[:, 1]).square().mean())
        loss(model, x).backward()
        optimizer.step()
    (row,) = [r for r in sink.records if r.name == "curvature/sharpness"]
    assert row.status == "not_applicable"
    assert "no second derivative that differences could stand in for" in row.note
