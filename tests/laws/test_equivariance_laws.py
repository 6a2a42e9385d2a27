"""Laws of homogeneity and input rotation, of shifts that compensate and of experts exchanged."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import eqtoolbox as eq
from eqtoolbox.weights.families.compensation import Compensation
from eqtoolbox.weights.families.experts import ExpertPermutation
from eqtoolbox.weights.families.homogeneity import Homogeneity
from eqtoolbox.weights.families.input_rotation import InputRotation
from eqtoolbox.weights.parameter import ParameterSymmetry
from tests.symmetry.architectures import Experts, Recurrent, Skip

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(16) % 3


def found_in(model: nn.Module, x: Tensor = X) -> list[ParameterSymmetry]:
    return eq.weights.discover(model, (x, Y[: len(x)]))


def only(kind: type, found: list[ParameterSymmetry]) -> ParameterSymmetry:
    return next(s for s in found if isinstance(s, kind) and s.family == kind.family)


def network(bias: bool = True, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 5, bias), act(), nn.Linear(5, 4, bias), act(), nn.Linear(4, 3, bias))
    return nn.Sequential(*layers).double()


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters()}


@pytest.mark.parametrize("bias", [False, True])
def test_a_relu_network_is_homogeneous_at_rates_1_and_biases_at_their_layers_number(
    bias: bool,
) -> None:
    model = network(bias)
    symmetry = only(Homogeneity, found_in(model))
    rates = {f"{k}.weight": 1.0 for k in (0, 2, 4)}
    rates |= {"0.bias": 1.0, "2.bias": 2.0, "4.bias": 3.0} if bias else {}
    assert dict(symmetry.rates) == rates
    assert symmetry.degree == 3
    assert symmetry.status == "verified"
    params, s = parameters(model), torch.tensor([0.3], dtype=torch.float64)
    f = lambda p: functional_call(model, p, (X,))
    there = f({**params, **symmetry.transform(params, s)})
    assert torch.allclose(there, torch.exp(3 * s) * f(params), rtol=1e-12)
    _, slope = torch.func.jvp(f, (params,), (symmetry.tangent(params, s),))  # Euler: J K = k f
    assert torch.allclose(slope, symmetry.rho(f(params), s), rtol=1e-12)
    loss = lambda p: nn.functional.cross_entropy(f(p), Y)
    g = torch.func.grad(loss)(params)
    y = f(params).requires_grad_()
    (dy,) = torch.autograd.grad(nn.functional.cross_entropy(y, Y), y)
    assert torch.allclose(symmetry.pairing(params, g), 3 * (dy * y).sum().reshape(1), rtol=1e-10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: network(act=nn.Tanh),
        lambda: network(act=nn.GELU),
        lambda: nn.Sequential(network(), nn.Hardtanh(-0.1, 0.1)),
    ],
    ids=["tanh", "gelu", "clamped output"],
)
def test_no_other_network_is_homogeneous(make: Callable[[], nn.Module]) -> None:
    assert not any(s.family == "homogeneity" for s in found_in(make()))


def test_rotated_inputs_are_rotated_first_weights() -> None:
    model = network(act=nn.Tanh)
    symmetry = only(InputRotation, found_in(model))
    assert symmetry.dimension == 15
    params = parameters(model)
    c = torch.randn(15, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = lambda p, x: nn.functional.cross_entropy(functional_call(model, p, (x,)), Y)
    turned = symmetry.transform_inputs(X, c)
    assert torch.allclose(turned.norm(dim=1), X.norm(dim=1))
    moved = {**params, **symmetry.transform(params, c)}
    assert float(loss(moved, turned) - loss(params, X)) == pytest.approx(0, abs=1e-12)
    assert abs(float(loss(moved, X) - loss(params, X))) > 1e-3  # the weights alone are no symmetry
    g, dx = torch.func.grad(loss, argnums=(0, 1))(params, X)
    tangent = symmetry.tangent(params, c)
    along = sum(float((g[n] * k).sum()) for n, k in tangent.items())
    assert along == pytest.approx(-float((dx * symmetry.tangent_inputs(X, c)).sum()), rel=1e-10)


def test_inputs_read_twice_are_rotated_in_every_layer_or_not_at_all() -> None:
    class Wide(nn.Module):
        def __init__(self, direct: bool) -> None:
            super().__init__()
            self.a, self.b, self.direct = nn.Linear(6, 6), nn.Linear(6, 3), direct

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)) + (x if self.direct else 0))

    torch.manual_seed(0)
    assert not any(isinstance(s, InputRotation) for s in found_in(Wide(True)))
    assert only(InputRotation, found_in(Wide(False))).names == ("a.weight",)


def test_biases_that_are_added_compensate_and_those_behind_a_gate_do_not() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 6)
    lstm = [s for s in found_in(Recurrent(nn.LSTM), x) if isinstance(s, Compensation)]
    gru = [s for s in found_in(Recurrent(nn.GRU), x) if isinstance(s, Compensation)]
    assert [s.dimension for s in lstm] == [16]
    assert [s.dimension for s in gru] == [8]
    assert gru[0].entries.tolist() == list(range(8))
    params = parameters(Recurrent(nn.GRU).double())
    change = {n: torch.randn_like(p) for n, p in params.items()}
    moved = {n: p + change[n] for n, p in params.items()}
    charge = gru[0].charge(moved) - gru[0].charge(params)
    assert torch.allclose(charge, gru[0].pairing(params, change))


def test_experts_are_exchanged_with_their_rows_of_the_router() -> None:
    torch.manual_seed(0)
    model = Experts().double()
    symmetry = only(ExpertPermutation, found_in(model))
    assert symmetry.dimension == 2
    assert symmetry.status == "verified"
    params = parameters(model)
    moved = {**params, **symmetry.element(params, 0)}
    run = lambda p: functional_call(model, p, (X,))
    assert torch.allclose(run(moved), run(params), rtol=1e-12)
    half = {**moved, "g.weight": params["g.weight"], "g.bias": params["g.bias"]}
    assert not torch.allclose(run(half), run(params), rtol=1e-3)


def test_a_skip_without_a_scale_of_its_own_is_not_homogeneous() -> None:
    torch.manual_seed(0)
    assert not any(s.family == "homogeneity" for s in found_in(Skip()))


def _of_weights(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return 0.01 * sum(p.square().sum() for p in model.parameters())


def _of_units(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return 0.01 * model[1](model[0](batch[0])).square().mean()


def _of_outputs(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return torch.zeros(())


@pytest.mark.parametrize(
    ("beside", "found"), [(_of_weights, False), (_of_units, False), (_of_outputs, True)]
)
def test_homogeneity_is_that_of_losses_that_see_parameters_by_the_output_alone(
    beside: Callable[..., Tensor], found: bool
) -> None:
    """What else the loss has of them, c = <dl/dy, rho> does not tell."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1]) + beside(model, batch)

    families = {s.family for s in eq.weights.discover(network(), (X, Y), loss)}
    assert ("homogeneity" in families) == found
