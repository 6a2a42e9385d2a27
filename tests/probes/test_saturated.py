"""Losses that have almost vanished: rounding is told apart from what is wrong."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes import Conservation, Curvature, Noether
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink
from tests.conftest import blobs


def memorised(scale: float, probe: eq.Probe) -> tuple[list[Record], nn.Module]:
    """Records of a network that knows its batch by heart, its last layer enlarged."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    batch, adam = blobs(), torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        adam.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        adam.step()
    with torch.no_grad():
        model[3].weight.mul_(scale)
        model[3].bias.mul_(scale)
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=1e-4), MemorySink()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    with eq.attach(
        model, optimizer, probes=[probe], sinks=[sink], budget=None, schedule=1
    ) as monitor:
        step_loss = monitor.loss(loss)
        for _ in range(3):
            optimizer.zero_grad()
            step_loss(model, batch).backward()
            optimizer.step()
    return sink.records, model


def largest(model: nn.Module) -> float:
    """The largest eigenvalue in float64, by its dense Hessian."""
    wide, (x, y) = model.double(), blobs()
    params = {n: p.detach() for n, p in wide.named_parameters()}
    flat = torch.cat([p.reshape(-1) for p in params.values()])

    def whole(v: Tensor) -> Tensor:
        parts = v.split([p.numel() for p in params.values()])
        given = {n: q.view_as(p) for (n, p), q in zip(params.items(), parts, strict=True)}
        buffers = {n: b.clone() for n, b in wide.named_buffers()}
        return F.cross_entropy(torch.func.functional_call(wide, given | buffers, (x.double(),)), y)

    H = torch.autograd.functional.hessian(whole, flat)
    return float(torch.linalg.eigvalsh(H)[-1])


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0, 4.0])
def test_a_vanishing_loss_keeps_its_curvature_as_far_as_rounding_lets_it(scale: float) -> None:
    records, model = memorised(scale, Curvature(k=1, smallest=False))
    rows = [r for r in records if r.name == "curvature/sharpness"]
    assert len(rows) == 3 and all(r.status != "failed" for r in rows)
    for row in rows:
        if row.status == "not_applicable":
            assert "the loss has almost vanished" in row.note
        else:
            off = abs(row.value - largest(model)) / row.value
            assert off <= max(0.02, 3 * (row.stderr or 0.0) / row.value)


@pytest.mark.parametrize("scale", [2.0, 3.0, 5.0])
@pytest.mark.parametrize("probe", [Noether(), Conservation()])
def test_laws_of_a_vanishing_loss_are_not_called_broken(probe: eq.Probe, scale: float) -> None:
    records, _ = memorised(scale, probe)
    judged = [r for r in records if r.verdict is not None and not math.isnan(r.value)]
    assert judged and not [r for r in judged if r.verdict == "violated"]
