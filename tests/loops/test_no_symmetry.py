"""A run whose loss has no symmetry says so, and what the search could not look at."""

from pathlib import Path

import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.report import Run


class Unruled(nn.Module):
    """Through an operation that the search has no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumprod(self.a(x).sigmoid() + 0.3, 1).lerp(x[:, :5], 0.1 + 0.2 * x[:, :5])


def test_what_was_not_looked_at_is_told_where_no_law_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Unruled()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss_fn = lambda m, x: m(x).sin().mean()
    with eq.attach(model, optimizer, loss_fn=loss_fn, run_dir=tmp_path / "run") as monitor:
        for _ in range(3):
            x = torch.randn(8, 6)
            optimizer.zero_grad()
            monitor.observe(x)
            loss_fn(model, x).backward()
            optimizer.step()
    notes = eq.weights.discover(model, torch.randn(8, 6), loss_fn).notes
    (said,) = [f for f in Run(tmp_path / "run").findings() if "No law" in f.text]
    assert said.level == "note"
    assert notes and all(note in said.text for note in notes)
