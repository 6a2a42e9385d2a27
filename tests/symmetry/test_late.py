"""Symmetries that only the last samples of a batch break are not found."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.weights.search import point, problem

Case = tuple[nn.Module, Tensor]


class Experts(nn.Module):
    """Three experts, of which the first acts twice where an input is large."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(5, 3)
        self.experts = nn.ModuleList(nn.Linear(5, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        shares, given = self.router(x).softmax(-1), [expert(x) for expert in self.experts]
        mixed = sum(shares[:, k : k + 1] * given[k] for k in range(3))
        return mixed + torch.relu(x[:, :1] - 3) * given[0]


class Outliers(nn.Module):
    """A network that looks at numbers: what lies far out counts half."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.ones(len(x), 1).to(x)
        weights[[k for k in range(len(x)) if float(x.detach()[k, 0]) > 2.5]] = 0.5
        return self.second(torch.tanh(self.first(x))) * weights


class Counted(nn.Module):
    """A network that counts its large units."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6, bias=False)
        self.second = nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.second(h) * (1 + 0.01 * int((h > 6).sum()))


def experts() -> Case:
    x = torch.randn(32, 5).clamp(max=2.5)
    x[-4:, 0] = 5.0
    return Experts(), x


def kinked() -> Case:
    """A unit that is flat until the last sample reaches its kink, to one side."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU6(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[:, 3] = 0.0
        model[0].bias[2] = 0.0
        model[0].weight[2] = torch.tensor([0.0, 0.0, 0.0, 6.0])
    x = torch.randn(32, 4)
    x[:, 3], x[-1, 3] = -10.0, -0.6
    return model, x


def saturated() -> Case:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    return model, 300 * torch.randn(32, 5)


def outliers() -> Case:
    x = 0.5 * torch.randn(32, 4)
    x[-8:] *= 8
    return Outliers(), x


def counted() -> Case:
    x = 0.3 * torch.randn(32, 5)
    x[8:] *= 13
    return Counted(), x


CASES: dict[str, tuple[Callable[[], Case], tuple[str, str]]] = {
    "experts": (experts, ("permutation", "")),
    "a kink to one side": (kinked, ("translation", "0")),
    "saturated units": (saturated, ("translation", "0")),
    "inputs that are looked at": (outliers, ("input_rotation", "")),
    "units that are counted": (counted, ("rescale", "")),
}


@pytest.mark.parametrize("kind", ["small", "dear", "large"])
@pytest.mark.parametrize("case", CASES)
def test_what_late_samples_break_is_not_verified(
    case: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "dear":
        monkeypatch.setattr(problem, "_DEAR", 0)
    if kind == "large":
        monkeypatch.setattr(point, "_KEPT_MODEL", 0)
        monkeypatch.setattr(point, "_KEPT_TENSOR", 500)
    make, (family, name) = CASES[case]
    torch.manual_seed(1)
    model, x = make()
    batch: Any = x, torch.randint(0, 3, (32,), generator=torch.Generator().manual_seed(0))
    found = eq.weights.discover(model, batch)
    false = [s for s in found if s.family == family and name in ("", s.name)]
    assert not [s for s in false if s.status in ("verified", "approximate")]
    assert any(s.status == "verified" for s in found), "and others are"
