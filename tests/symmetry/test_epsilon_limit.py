"""Which constants count as the epsilon of a normalisation, and which are part of the function."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.weights.epsilon import Epsilons
from tests.symmetry.expected import counts

X, Y = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
Map = Callable[[Tensor], Tensor]


class Apply(nn.Module):
    def __init__(self, function: Map) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def net(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5, bias=False), *between, nn.Tanh(), nn.Linear(5, 3))


def mean_square(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True)


def in_place(x: Tensor) -> Tensor:
    """As Keras computes it."""
    return x.mul(mean_square(x).add(2e-3).rsqrt_())


NORMS: dict[str, Map] = {
    "layer": nn.RMSNorm(5, eps=2e-3, elementwise_affine=False),
    "root": lambda x: x / (mean_square(x) + 2e-3).sqrt(),
    "power": lambda x: x * (mean_square(x) + 2e-3) ** -0.5,
    "in place": in_place,
    "division": lambda x: x / (mean_square(x).sqrt() + 2e-2),
}


@pytest.mark.parametrize("kind", NORMS)
def test_larger_epsilons_leave_approximate_scales_that_they_explain(kind: str) -> None:
    found = eq.weights.discover(net(Apply(NORMS[kind])), (X, Y))
    (scale,) = (s for s in found if s.family == "scale")
    assert scale.status == "approximate" and scale.residual > 1e-4
    assert scale.epsilon == pytest.approx(scale.residual, rel=1e-9)


@pytest.mark.parametrize("kind", NORMS)
def test_a_factor_of_one_leaves_a_norm_as_it_is(kind: str) -> None:
    x = X[:, :5].double()
    with Epsilons(lambda _, amount, __: torch.ones_like(amount)) as seen:
        made = NORMS[kind](x)
    with Epsilons(lambda _, amount, eps: torch.full_like(amount, 2.0)):
        other = NORMS[kind](x)
    assert torch.allclose(made, NORMS[kind](x), rtol=1e-14)
    amount = mean_square(x).sqrt() if kind == "division" else mean_square(x)
    assert torch.allclose(seen.amounts[0], amount, rtol=1e-13) and len(seen.amounts) == 1
    assert not torch.allclose(other, made, rtol=1e-5)


REAL: dict[str, Map] = {
    "residual": lambda x: torch.relu(x) + 2e-3,
    "under a whole power": lambda x: (x + 0.05) ** 2,
    "numerator": lambda x: (x + 0.05) / 2,
    "before the norm": lambda x: NORMS["root"](x + 2e-3),
    "too large": lambda x: x / (mean_square(x) + 0.2).sqrt(),
}


@pytest.mark.parametrize("kind", REAL)
def test_constants_that_are_no_epsilon_leave_no_scale(kind: str) -> None:
    for rest in ((), (nn.Linear(5, 5, bias=False),)):
        found = eq.weights.discover(net(Apply(REAL[kind]), *rest), (X, Y))
        assert not {"scale", "rescale"} & {s.family for s in found if s.status != "broken"}
    assert ("0.2 added before a root" in " ".join(found.notes)) == (kind == "too large")


@pytest.mark.parametrize("bias", [True, False])
def test_an_epsilon_that_leaves_too_much_is_named_and_costs_no_exact_symmetry(bias: bool) -> None:
    norm = Apply(lambda x: x / (mean_square(0.03 * x) + 0.09).sqrt())
    between = (nn.ReLU(), nn.Linear(5, 5, bias=False), norm)
    model = nn.Sequential(nn.Linear(6, 5, bias=bias), *between, nn.Tanh(), nn.Linear(5, 3))
    found = eq.weights.discover(model, (X, Y))
    assert counts(found)["rescale"] == 5 and "scale" not in counts(found)
    assert "0.09 added before a root" in found.notes[-1]
