"""Random numbers of a loss that is computed in float64 are those of the training."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Beta, Categorical, Normal, Uniform

import eqtoolbox as eq
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.replay.widened import Widened
from eqtoolbox.sinks.memory import MemorySink

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "randn_like": torch.randn_like,
    "rand of its type": lambda x: torch.rand(x.shape, dtype=x.dtype),
    "randn of its type": lambda x: torch.randn(x.shape, dtype=x.dtype, device=x.device),
    "normal around it": lambda x: torch.normal(x, 0.5),
    "normal as wide": lambda x: torch.normal(0.0, x),
    "normal by names": lambda x: torch.normal(mean=x, std=x),
    "normal by numbers": lambda x: x + torch.normal(mean=0.0, std=2.0, size=x.shape),
    "normal of one row": lambda x: torch.normal(x, x[0]),
    "bernoulli": torch.bernoulli,
    "its bernoulli": lambda x: x.bernoulli(),
    "bernoulli_": lambda x: torch.empty_like(x).bernoulli_(0.3),
    "bernoulli_ by it": lambda x: torch.empty_like(x).bernoulli_(x),
    "geometric_": lambda x: torch.empty_like(x).geometric_(0.3),
    "random_": lambda x: torch.empty_like(x).random_(),
    "uniform_": lambda x: x.new_empty(x.shape).uniform_(),
    "poisson": lambda x: torch.poisson(5 * x),
    "multinomial": lambda x: torch.multinomial(x, 3),
    "dropout": lambda x: F.dropout(x, 0.3),
    "Normal": lambda x: Normal(x, x).rsample() + Normal(x, x).sample(),
    "Uniform": lambda x: Uniform(torch.zeros_like(x), x).rsample(),
    "Beta": lambda x: Beta(1 + x, 1 + x).rsample(),
    "Bernoulli": lambda x: Bernoulli(x).sample(),
    "Categorical": lambda x: Categorical(x).sample(),
    "one hot": lambda x: F.one_hot(Categorical(x).sample(), x.shape[1]).to(x),
    "Gumbel softmax": lambda x: F.gumbel_softmax(x),
    "by a generator": lambda x: torch.normal(x, x, generator=torch.Generator().manual_seed(2)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_drawn_beside_wide_numbers_is_what_training_draws(name: str) -> None:
    x, draw = (
        0.05 + 0.9 * torch.rand(33, 17, generator=torch.Generator().manual_seed(1)),
        DRAWS[name],
    )
    torch.manual_seed(0)
    plain, after = draw(x), torch.get_rng_state()
    torch.manual_seed(0)
    with Widened():
        wide = draw(x.double())
    torch.testing.assert_close(wide.double(), plain.double(), rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), after), "and as many of them"
    assert plain.is_floating_point() == (wide.dtype == torch.float64)


def test_a_normal_number_is_as_precise_as_what_it_is_around() -> None:
    mean = torch.tensor([1.0, 2.0], dtype=torch.float64).requires_grad_() / 3
    with Widened():
        torch.manual_seed(0)
        drawn = torch.normal(mean, 1e-3)
        torch.manual_seed(0)
        noise = 1e-3 * torch.randn(2)
    assert torch.equal(drawn, mean.detach() + noise) and not drawn.requires_grad


class Encoder(nn.Module):
    """Codes around which noise is drawn, in the loss's own way."""

    def __init__(self, drawn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.drawn = nn.Linear(6, 16), nn.Linear(8, 6), drawn

    def forward(self, x: Tensor) -> Tensor:
        mean, log = self.first(x).chunk(2, 1)
        return self.second(torch.tanh(mean + self.drawn(mean) * (0.5 * log).exp()))


@pytest.mark.parametrize(
    "name",
    [
        "randn_like",
        "Normal",
        "Uniform",
        "bernoulli_",
        "dropout",
        "one hot",
        "Bernoulli",
        "Beta",
    ],
)
def test_losses_that_draw_have_exact_products(name: str) -> None:
    """Other noise in float64 had been taken for wrong second derivatives, or for no judge."""
    torch.manual_seed(0)
    drawn = lambda z: DRAWS[name](torch.ones_like(z) * 0.9)
    model, x, sink = Encoder(drawn), torch.randn(24, 6), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probes = [Curvature(k=2)]
    with eq.attach(model, optimizer, probes=probes, sinks=[sink], on_error="raise") as monitor:
        loss = monitor.loss(lambda m, b: F.mse_loss(m(b) + F.relu(m(b)), b))
        for _ in range(2):
            optimizer.zero_grad()
            loss(model, x).backward()
            optimizer.step()
    found = {r.name: r for r in sink.records}
    test = found["curvature/self_test/difference"]
    assert test.note == "exact: symmetric, repeatable, equal to differences"
    assert test.value < 1e-4
