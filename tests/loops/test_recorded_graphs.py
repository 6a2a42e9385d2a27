"""Steps that are recorded as CUDA graphs are left alone: nothing in them may wait."""

import warnings

import pytest
import torch
import torch.nn.functional as F

import eqtoolbox as eq
from eqtoolbox.sinks.memory import MemorySink
from tests.conftest import blobs, mlp


@pytest.mark.parametrize("several", [False, True])
def test_a_step_that_is_recorded_is_left_alone_and_said(
    monkeypatch: pytest.MonkeyPatch, several: bool
) -> None:
    torch.manual_seed(0)
    model, sink = mlp(6, 8, 3), MemorySink()
    halves = [list(model.parameters())[:2], list(model.parameters())[2:]]
    optimizers = [torch.optim.SGD(p, lr=0.1) for p in halves]
    if not several:
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with eq.attach(
            model, optimizers if several else optimizers[0], schedule=1, budget=None, sinks=[sink]
        ) as monitor:
            loss_fn = monitor.loss(lambda m, b: F.cross_entropy(m(b[0]), b[1]))

            def step() -> None:
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss_fn(model, blobs()).backward()
                for optimizer in optimizers:
                    optimizer.step()

            with monkeypatch.context() as recording:
                recording.setattr(torch.cuda, "is_initialized", lambda: True)
                recording.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
                step()
                step()
            assert not sink.records
            assert monitor.step == 0
            step()
    assert [str(w.message) for w in said if "CUDA graph" in str(w.message)]
    assert {r.step for r in sink.records} == {0}
    assert any(r.name.startswith("conservation/drift") and r.status == "ok" for r in sink.records)
