"""Slopes that vanish, or cancel on a batch alone, are no translations; slopes of rounding are."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.weights.search import point


def translations(model: nn.Module, x: Tensor, classes: int = 3) -> dict[str, int]:
    y = torch.randint(0, classes, (len(x),))
    found = eq.weights.discover(model, (x, y), lambda m, b: F.cross_entropy(m(b[0]), b[1]))
    verified = [s for s in found if s.family == "translation" and s.status == "verified"]
    return {s.name: s.dimension for s in verified}


@pytest.fixture(params=["small", "large"])
def _size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "large":
        monkeypatch.setattr(point, "_KEPT_MODEL", 0)


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("depth", [10, 16, 24])
def test_biases_whose_gradient_vanishes_are_no_translations(depth: int) -> None:
    """An evaluation cannot see them move the loss: of 24 sigmoids a change is below rounding."""
    torch.manual_seed(0)
    middle = [z for _ in range(depth) for z in (nn.Linear(8, 8), nn.Sigmoid())]
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), *middle, nn.Linear(8, 3))
    assert translations(model, torch.randn(32, 4)) == {str(2 * depth + 2): 9}


@pytest.mark.parametrize(("seed", "scale"), [(5, 3e3), (13, 3e3), (15, 3e3), (5, 1e5), (21, 1e5)])
def test_what_cancels_where_a_softmax_is_saturated_is_no_translation(
    seed: int, scale: float
) -> None:
    """There the gradient counts samples: a class predicted as often as it is given has none."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    assert translations(model, scale * torch.rand(16, 4)) == {"2": 7}


class Bare(nn.Module):
    """A constant that batch statistics take back, with no weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.norm = nn.Linear(4, 6), nn.Linear(6, 3), nn.BatchNorm1d(6)
        self.b = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.outer(self.norm(torch.tanh(self.inner(x)) + self.b).relu())
        return made


def narrow() -> nn.Module:
    """Of one input the slope of the weights is rounding as well: a norm takes their scale back."""
    norm = nn.BatchNorm1d(6, eps=1e-30)
    return nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 6), norm, nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize(("make", "name"), [(Bare, "b"), (narrow, "1")])
def test_slopes_of_rounding_are_translations(make: Callable[[], nn.Module], name: str) -> None:
    """Negative control: no matrix beside says that there is more, and there is none."""
    torch.manual_seed(0)
    assert translations(make(), torch.randn(16, 4))[name] == 6
