"""Modules whose kernels were recorded into CUDA graphs: measured right, or not at all."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.record.record import Record
from tests.conftest import mlp
from tests.cuda.loops import Training, same, sgd


def network() -> nn.Module:
    return mlp(12, 8, 4)


def vectors(device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 16, 12, generator=rng), torch.randint(4, (5, 16), generator=rng)
    return [(a.to(device), b.to(device)) for a, b in zip(x, y, strict=True)]


def graphed(model: nn.Module) -> Any:
    sample = torch.randn(16, 12, device=next(model.parameters()).device)
    return torch.cuda.make_graphed_callables(model, (sample,))


def sharpness(records: list[Record]) -> list[float]:
    found = [r for r in records if r.name == "curvature/sharpness" and r.status == "ok"]
    return [r.value for r in found]


PLAIN = Training(
    model=network, optimizer=sgd, batches=vectors, probes=[Curvature(k=1, smallest=False)]
)


def test_a_graphed_module_is_measured_right_or_refused(gpu: str) -> None:
    plain = replace(PLAIN, device=gpu)
    recorded = replace(plain, called=graphed, options={"on_error": "warn"})
    with_, records = recorded.run(attached=True)
    assert same(with_, recorded.run(attached=False)[0])
    found = sharpness(records)
    expected = sharpness(plain.run(attached=True)[1])
    assert expected, "without graphs there is something to measure"
    assert not found or found == pytest.approx(expected, rel=1e-3)


def test_the_network_itself_is_measured(device: str) -> None:
    """Control of the test above, which a CPU can run."""
    assert len(sharpness(replace(PLAIN, device=device).run(attached=True)[1])) >= 2
