"""Lie derivatives of layers add up to that of the network, whatever the wiring."""

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.symmetry import Equivariance
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.actions.linear import vectors
from eqtoolbox.symmetry.actions.resampling import FourierShift
from eqtoolbox.symmetry.groups.matrices import SO2, SO3
from eqtoolbox.symmetry.groups.unbounded import Translations
from eqtoolbox.symmetry.layerwise import BETWEEN, layer_shares
from eqtoolbox.symmetry.lie import lie_derivative

SHIFT = Equivariance(Translations((2.0, 2.0), whole=False), FourierShift(), FourierShift())
POOLED = Equivariance(Translations((2.0, 2.0), whole=False), FourierShift(), trivial)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(mode: str, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode, stride=stride).double()


class Residual(nn.Module):
    """A skip, a functional operation and one layer used twice."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.a, self.b = conv("circular"), conv(mode)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sin(self.a(x))
        return self.b(y) + x * self.a(y)


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


MODELS = {
    "chain": (lambda: nn.Sequential(conv("zeros"), nn.Tanh(), conv("circular")), SHIFT),
    "strided": (lambda: nn.Sequential(conv("zeros"), nn.Tanh(), conv("zeros", 3), Pool()), POOLED),
    "residual": (lambda: Residual("zeros"), SHIFT),
    "rows": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(81, 3).double()), POOLED),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("generator", [0, 1])
def test_parts_of_layers_add_up_to_the_derivative_of_the_network(name, generator: int) -> None:
    torch.manual_seed(0)
    build, claim = MODELS[name]
    model, x = build(), normal(4, 1, 9, 9)
    parts = layer_shares(model, x, claim, generator=generator)
    total = sum(p.part for p in parts)
    whole = lie_derivative(model, x, claim)[generator]
    assert float(total.square().sum() / 4) ** 0.5 == pytest.approx(whole.rate, rel=1e-9)
    assert sum(p.share for p in parts) == pytest.approx(1.0, rel=1e-12)
    assert parts[-1].layer == BETWEEN


def test_the_layer_that_pads_with_zeros_carries_the_whole_violation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv("circular"), nn.Identity(), conv("zeros"), conv("circular"))
    parts = {p.layer: p for p in layer_shares(model, normal(4, 1, 9, 9), SHIFT)}
    assert parts["2"].share == pytest.approx(1.0, rel=1e-12)
    assert all(parts[n].rate < 1e-13 for n in ("0", "1", "3", BETWEEN))


def test_parts_of_linear_layers_are_their_commutators_carried_on() -> None:
    """W2 W1 with hidden vectors: the parts are W2 [W1, A] x and [W2, A] W1 x."""
    w1, w2, x = normal(3, 3, seed=1), normal(3, 3, seed=2), normal(50, 3)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    model[0].weight, model[1].weight = nn.Parameter(w1), nn.Parameter(w2)
    claim = Equivariance(SO3(), vectors, vectors)
    hidden = {"0": vectors, "1": vectors}
    for i, a in enumerate(SO3().generators()):
        first, second, rest = layer_shares(model, x, claim, generator=i, hidden=hidden)
        assert torch.allclose(first.part, x @ (w2 @ (w1 @ a - a @ w1)).T, rtol=1e-11, atol=1e-12)
        assert torch.allclose(second.part, x @ ((w2 @ a - a @ w2) @ w1).T, rtol=1e-11, atol=1e-12)
        assert rest.rate < 1e-13


def test_a_wrong_hidden_action_moves_violation_between_layers_and_keeps_the_sum() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    claim, x = Equivariance(SO2(), vectors, vectors), normal(20, 2)
    right = layer_shares(model, x, claim, hidden={"0": vectors, "1": vectors})
    wrong = layer_shares(model, x, claim, hidden={"0": trivial, "1": vectors})
    assert [p.rate < 1e-14 for p in right] == [True, True, True]
    assert wrong[0].rate > 1 and wrong[1].rate > 1
    assert float(sum(p.part for p in wrong).abs().max()) < 1e-14


def test_a_missing_generator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of the 1 of so2, got 3"):
        layer_shares(
            nn.Identity(), normal(2, 2), Equivariance(SO2(), vectors, vectors), generator=3
        )
