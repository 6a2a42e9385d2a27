"""Entries that no sample of a batch reads are no translations: another batch may read them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.sinks.memory import MemorySink

Batch = tuple[Tensor, ...]
Loss = Callable[..., Tensor]


def taken(model: nn.Module, x: Tensor, action: Tensor, goal: Tensor) -> Tensor:
    """Of the action that was taken, as Q learning does."""
    return F.mse_loss(model(x).gather(1, action[:, None])[:, 0], goal)


def masked(model: nn.Module, x: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    """Of the labels that are known."""
    each = F.binary_cross_entropy_with_logits(model(x), y, reduction="none")
    return (each * seen).sum() / seen.sum()


def actions(first: bool, rng: torch.Generator) -> Batch:
    some = torch.randint(3 if first else 5, (8,), generator=rng)
    return torch.randn(8, 6, generator=rng), some, torch.randn(8, generator=rng)


def labels(first: bool, rng: torch.Generator) -> Batch:
    y, seen = (torch.rand(2, 8, 5, generator=rng) < 0.5).float()
    if first:
        seen[:, 3:] = 0
    return torch.randn(8, 6, generator=rng), y, seen


def head() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5))


@pytest.mark.parametrize(
    ("loss_fn", "draw"), [(taken, actions), (masked, labels)], ids=["gather", "mask"]
)
def test_outputs_that_the_first_batch_leaves_out_break_no_law(loss_fn: Loss, draw: Any) -> None:
    torch.manual_seed(0)
    model, sink, rng = head(), MemorySink(), torch.Generator().manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options: dict[str, Any] = {"schedule": 2, "budget": None, "on_error": "raise"}
    with eq.attach(model, optimizer, sinks=[sink], **options) as monitor:
        loss = monitor.loss(loss_fn)
        for step in range(8):
            optimizer.zero_grad()
            loss(model, *draw(step == 0, rng)).backward()
            optimizer.step()
    laws = [r for r in sink.records if r.verdict is not None]
    assert laws
    assert not [r.name for r in laws if r.verdict == "violated"]
    assert not [r.name for r in laws if r.name.endswith("/translation")]


def translations(model: nn.Module, batch: Batch, loss_fn: Loss) -> dict[str, int]:
    found = eq.weights.discover(model, batch, loss_fn=loss_fn)
    verified = [s for s in found if s.family == "translation" and s.status == "verified"]
    return {s.name: s.dimension for s in verified}


def test_what_a_norm_takes_back_is_a_translation_still() -> None:
    """Negative control: there slopes are rounding, and those of the weights beside them are not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.randn(12, 6), torch.randint(3, (12,))
    found = translations(model, (x, y), lambda m, b: F.cross_entropy(m(b[0]), b[1]))
    assert found["0"] == 16


def test_the_bias_of_a_dead_unit_is_no_translation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias[2] = -100.0
    x, y = torch.randn(12, 6), torch.randint(3, (12,))
    found = translations(model, (x, y), lambda m, b: F.cross_entropy(m(b[0]), b[1]))
    assert "0" not in found
