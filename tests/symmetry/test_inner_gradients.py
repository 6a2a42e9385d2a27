"""Parameter symmetries are found through gradients that a loss takes inside, and not beyond."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.replay.unsaved import LARGE
from tests.conftest import mlp
from tests.loops.inner_losses import adapted, forces, penalised, points, wave

SMOOTH = [nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Softplus, nn.ELU, nn.Mish]
HOMOGENEOUS = [nn.ReLU, nn.LeakyReLU]


def net(activation: type[nn.Module], inputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return mlp(inputs, 5, 1, activation=activation)


def steepness(model: Any, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return (slope.square().sum(1) - 1).square().mean() + model(x).square().mean()


def dimensions(model: nn.Module, batch: Any, loss: Any) -> dict[str, int]:
    """Verified dimensions by family, of the hidden units."""
    torch.manual_seed(3)
    sums: dict[str, int] = {}
    for s in eq.weights.discover(model, batch, loss):
        if s.status == "verified" and any(n.startswith(("0.", "net.0.")) for n in s.names):
            sums[s.family] = sums.get(s.family, 0) + s.dimension
    return sums


@pytest.mark.parametrize("activation", [*SMOOTH, *HOMOGENEOUS])
def test_hidden_units_permute_under_a_penalty_on_slopes(activation: type[nn.Module]) -> None:
    assert dimensions(net(activation), points(), steepness)["permutation"] == 4


def test_they_permute_in_a_model_whose_values_are_evaluated_without_saving() -> None:
    """What takes a gradient inside is evaluated twice there, of the same loss."""
    model = net(nn.Tanh)
    model.register_parameter("far", nn.Parameter(torch.zeros(LARGE)))
    assert dimensions(model, points(), steepness) == {"permutation": 4, "sign_flip": 5}


@pytest.mark.parametrize("activation", HOMOGENEOUS)
def test_units_rescale_under_it_where_their_map_is_homogeneous(
    activation: type[nn.Module],
) -> None:
    assert dimensions(net(activation), 8 * points(99) - 4, steepness)["rescale"] == 5


@pytest.mark.parametrize("activation", SMOOTH)
def test_they_do_not_elsewhere(activation: type[nn.Module]) -> None:
    assert "rescale" not in dimensions(net(activation), points(), steepness)


def test_odd_units_flip_under_it_and_others_do_not() -> None:
    assert dimensions(net(nn.Tanh), points(), steepness)["sign_flip"] == 5
    assert "sign_flip" not in dimensions(net(nn.SiLU), points(), steepness)


def test_units_of_a_wave_equation_permute() -> None:
    assert dimensions(net(nn.Tanh), points(), wave)["permutation"] == 4


def test_units_that_a_loss_tells_apart_do_not() -> None:
    def loss(model: Any, x: Tensor) -> Tensor:
        return steepness(model, x) + 1e-2 * (model[0].bias * torch.arange(5.0)).sum()

    assert "permutation" not in dimensions(net(nn.Tanh), points(), loss)


def test_units_of_a_critic_rescale_under_its_penalty() -> None:
    batch = (torch.randn(8, 2), torch.randn(8, 2))
    assert dimensions(net(nn.LeakyReLU), batch, penalised)["rescale"] == 5


def test_an_inner_step_of_learning_breaks_rescaling_and_keeps_permutations() -> None:
    """A step moves a weight of scale s by a gradient of scale 1 / s."""
    x = points()
    found = dimensions(net(nn.ReLU), [(x[:6], x[:6, :1]), (x[6:], x[6:, 1:])], adapted)
    assert found["permutation"] == 4
    assert "rescale" not in found


def test_units_of_a_force_field_permute() -> None:
    model, loss, batch = forces()
    assert dimensions(model, batch, loss)["permutation"] == 5
