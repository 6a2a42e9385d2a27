"""Exact products are compared with differences on few samples, where these run all operations."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes import proving
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.self_test import SelfTest
from eqtoolbox.replay.objective import Objective
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.memory import samples
from tests.probes.test_light_laws import large

SAMPLES = 32


def plain(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def of_few_detached(model: nn.Module, batch: Any) -> Tensor:
    """The last samples pull at half of what the others do, by a cut that these alone run."""
    each = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    if len(each) == SAMPLES:
        weight = each[-4:].detach().square()
        return (each[:-4].sum() + (weight * each[-4:]).sum()) / SAMPLES
    return each.mean()


@pytest.mark.parametrize(("loss", "held"), [(plain, False), (of_few_detached, True)])
def test_products_are_compared_on_few_samples_where_all_operations_are_torchs_own(
    monkeypatch: pytest.MonkeyPatch, loss: Any, held: bool
) -> None:
    torch.manual_seed(0)
    model, batch = large(SAMPLES)
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.01), MemorySink()
    compared, of = proving.compared, list[int]()

    def counted(objective: Objective, *given: Any) -> SelfTest:
        of.append(samples(objective))
        return compared(objective, *given)

    monkeypatch.setattr(proving, "compared", counted)
    probes = [Curvature(k=1, smallest=False)]
    with eq.attach(model, optimizer, probes=probes, schedule=1, sinks=[sink]) as monitor:
        monitor.loss(loss)(model, batch).backward()
        optimizer.step()
    (row,) = [r for r in sink.records if r.name == "curvature/self_test/difference"]
    assert row.facts["mode"] == ("held" if held else "exact")
    assert row.status == "ok" and (row.value > 0.01) == held
    assert of == [SAMPLES if held else 8]
