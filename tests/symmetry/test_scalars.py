"""A parameter without axes, as a temperature or a gate, is like one with a single entry."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.weights import discover


class Scaled(nn.Module):
    """A gate on a stream, a slope, a temperature and a shift, each one number."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.w, self.b = nn.Linear(6, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
        numbers = {"gate": 0.7, "scale": 1.5, "shift": 0.3, "slope": 0.2}
        for name, number in numbers.items():
            self.register_parameter(name, nn.Parameter(torch.full(shape, number)))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x)
        z = torch.where(z > 0, z, self.slope * z)
        return self.b(z + self.gate * self.w(z.relu())) * self.scale + self.shift


def batch() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(16, 6, generator=rng).double(), torch.randint(3, (16,), generator=rng)


def records(shape: tuple[int, ...], where: Path) -> dict[tuple[int, str], Any]:
    model, (x, y), criterion = Scaled(shape), batch(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    probes = [eq.probes.Conservation(), eq.probes.Noether(), eq.probes.Discrete()]
    how: dict[str, Any] = {"schedule": 1, "budget": None, "on_error": "raise", "run_dir": where}
    monitor = eq.attach(model, optimizer, criterion=criterion, probes=probes, **how)
    for _ in range(2):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    monitor.close()
    found = {(r.step, r.name): (r.status, r.value) for r in eq.Run(where).records()}
    return {key: row for key, row in found.items() if not key[1].startswith("cost/")}


def test_every_record_is_that_of_one_entry(tmp_path: Path) -> None:
    one, none = records((1,), tmp_path / "one"), records((), tmp_path / "none")
    assert one.keys() == none.keys()
    assert (1, "conservation/drift/gain_rescale") in none
    for key, (status, value) in one.items():
        assert none[key][0] == status
        assert none[key][1] == pytest.approx(value, rel=1e-6, abs=1e-10), key


def test_acts_move_them_alike() -> None:
    ends = []
    for shape in ((), (1,)):
        model = Scaled(shape)
        found = discover(model, batch())
        assert all(s.status == "verified" for s in found)
        (flip,) = (s for s in found if s.family == "sign_flip" and "scale" in s.names)
        eq.act.move(model, flip, torch.tensor([-1]))
        assert float(model.scale.detach().sum()) == -1.5  # type: ignore[operator]
        assert "gain_rescale" in str(eq.act.balance(model, batch()))
        ends.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert torch.allclose(*ends, rtol=1e-9)
