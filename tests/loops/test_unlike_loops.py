"""Loops whose gradient vanishes, whose loss is to grow, and whose parameters thaw later."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def newest(sink: MemorySink, name: str) -> Record:
    return [r for r in sink.records if r.name == name][-1]


def test_a_gradient_of_zero_has_no_direction_and_is_finite() -> None:
    """As of a margin that every sample keeps."""
    model, sink = net(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss_fn = lambda m, x: F.relu(m(x) - 100.0).sum()
    with eq.attach(model, optimizer, loss_fn=loss_fn, sinks=[sink]) as monitor:
        for _ in range(3):
            x = torch.randn(6, 4)
            optimizer.zero_grad()
            monitor.observe(x)
            loss_fn(model, x).backward()
            optimizer.step()
    for name in ("monitor/closure_grad_cos", "monitor/closure_grad_ratio"):
        row = newest(sink, name)
        assert (row.status, "gradient is zero" in row.note) == ("not_applicable", True)


def test_drift_says_where_it_began_once_more_parameters_train() -> None:
    model, sink = net(), MemorySink()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss_fn = lambda m, b: F.cross_entropy(m(b[0]), b[1])
    with eq.attach(
        model,
        optimizer,
        loss_fn=loss_fn,
        sinks=[sink],
        probes={"conservation": {"schedule": 1}},
        budget=None,
    ) as monitor:
        for step in range(6):
            if step == 4:
                model[0].requires_grad_(True)
            batch = (torch.randn(6, 4), torch.arange(6) % 3)
            optimizer.zero_grad()
            monitor.observe(batch)
            loss_fn(model, batch).backward()
            optimizer.step()
    rows = [r for r in sink.records if r.name == "conservation/drift/translation"]
    begun = {r.step: r.facts.number("begun") for r in rows}
    assert 0 in begun and max(begun) >= 4
    assert all(begun[step] is None for step in begun if step < 4)
    assert {begun[step] for step in begun if step >= 4} <= {4.0, 5.0}


def test_what_a_climbing_optimizer_bears_is_not_the_sharpness() -> None:
    model, sink = net(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, maximize=True)

    def loss_fn(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return -F.cross_entropy(m(batch[0]), batch[1])

    with eq.attach(
        model,
        optimizer,
        loss_fn=loss_fn,
        sinks=[sink],
        probes={"curvature": {"schedule": 1}},
    ) as monitor:
        batch = (torch.randn(6, 4), torch.arange(6) % 3)
        monitor.observe(batch)
        loss_fn(model, batch).backward()
        optimizer.step()
    row = newest(sink, "curvature/stability")
    assert (row.status, "maximises" in row.note) == ("not_applicable", True)
    assert newest(sink, "curvature/sharpness").status == "ok"
