"""A drift is relative to the larger of the charge's scales at the start and now."""

import math

import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.sinks.memory import MemorySink


@pytest.mark.parametrize("factor", [0.05, 20.0])
def test_a_charge_that_shrinks_or_grows_drifts_by_less_than_its_larger_scale(factor: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    sink, start = MemorySink(), model[0].weight.detach().clone()
    with eq.attach(
        model, optimizer, probes=[Conservation()], schedule=1, budget=None, sinks=[sink]
    ) as monitor:
        loss_fn = monitor.loss(lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
        for step in range(4):
            batch = torch.randn(16, 6).double(), torch.randint(0, 3, (16,))
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            if step == 2:  # what no optimizer did
                with torch.no_grad():
                    model[0].weight.mul_(math.sqrt(factor))
            optimizer.step()
    drifts = [r.value for r in sink.records if r.name == "conservation/drift/scale"]
    now, then = (w.detach().square().sum(1) / 2 for w in (model[0].weight, start))
    expected = (now - then).norm() / torch.maximum(now, then).norm()
    assert drifts[-1] == pytest.approx(float(expected), rel=1e-6)
    assert drifts[-1] == pytest.approx(1 - min(factor, 1 / factor), rel=0.01)
