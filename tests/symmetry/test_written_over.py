"""What losses do to parameters and gradients beside computing changes no finding of a search."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.weights.search import point

TOKENS = torch.randint(0, 60, (32, 5), generator=torch.Generator().manual_seed(0))
X = torch.randn(32, 5, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(32) % 3


class Renormalised(nn.Module):
    """Writes to the rows that it looks up."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Embedding(60, 16, max_norm=2.0)
        self.l, self.h = nn.Linear(16, 40), nn.Linear(40, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.h(torch.relu(self.l(self.e(tokens).mean(1))))


class Rooted(nn.Module):
    """A gradient of NaN before a finite loss."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.n, self.o = nn.Linear(5, 11), nn.LayerNorm(11, eps=1e-3), nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.n(self.i(x))
        return self.o(torch.where(z > 0, z.sqrt(), 0.0))


class Gated(nn.Module):
    """Its backward reads a parameter through a hook on a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(5, 40), nn.Linear(40, 3)
        self.g = nn.Parameter(torch.rand(40))

    def forward(self, x: Tensor) -> Tensor:
        z = self.i(x)
        if z.requires_grad:
            z.register_hook(self._gate)
        return self.o(torch.relu(z)) + 0 * self.g.sum()

    def _gate(self, g: Tensor) -> Tensor:
        assert bool(self.g.isfinite().all()), "it was let go"
        return g * self.g.detach()


class Sloped(nn.Module):
    """Derivatives of torch.func inside, which suffer no hooks on what is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(5, 30), nn.Linear(30, 3)

    def forward(self, x: Tensor) -> Tensor:
        own = lambda y: self.o(torch.tanh(self.i(y))).square().sum()
        return self.o(torch.tanh(self.i(x))) + torch.func.vmap(torch.func.grad(own))(x)[:, :3]


@pytest.fixture(params=[False, True], ids=["small", "large"])
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setattr(point, "_KEPT_MODEL", 0)
        monkeypatch.setattr(point, "_KEPT_TENSOR", 500)
    return bool(request.param)


def found(model: nn.Module, x: Tensor) -> list[tuple[str, str, int, str]]:
    every = eq.weights.discover(model, (x, LABELS))
    return [(s.family, s.name, s.dimension, s.status) for s in every]


@pytest.mark.parametrize("seed", range(3))
def test_a_norm_that_is_enforced_while_looking_up_is_part_of_the_loss(
    seed: int, large: bool
) -> None:
    torch.manual_seed(seed)
    rows = found(Renormalised(), TOKENS)
    assert "homogeneity" not in {row[0] for row in rows}, "outputs do not grow with the table"
    assert not {row[3] for row in rows if row[:2] == ("rescale", "e-l")} - {"broken"}
    assert ("sign_flip", "e-l", 16, "verified") in rows, "which change no length"
    assert ("permutation", "e-l", 15, "verified") in rows, "whoever looked before has left no trace"


def test_what_has_no_finite_gradient_is_not_verified(large: bool) -> None:
    torch.manual_seed(0)
    every = eq.weights.discover(Rooted(), (X, LABELS))
    assert [s.status for s in every if (s.family, s.name) == ("scale", "i")] == ["broken"]
    assert any("gradient is not finite" in note for note in every.notes)


def test_a_hook_that_reads_a_parameter_in_the_backward_finds_it(large: bool) -> None:
    torch.manual_seed(0)
    assert any(row[3] == "verified" for row in found(Gated(), X))


def test_derivatives_of_torch_func_run_in_large_models(large: bool) -> None:
    torch.manual_seed(0)
    assert ("permutation", "i-o", 29, "verified") in found(Sloped(), X)


def test_a_bag_is_the_sum_of_its_rows() -> None:
    class Bag(nn.Module):
        def __init__(self, kind: Any) -> None:
            super().__init__()
            self.e, self.h = kind(60, 6), nn.Linear(6, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.e(tokens)
            return self.h(torch.tanh(x if x.dim() == 2 else x.sum(1)))

    torch.manual_seed(0)
    one = found(Bag(nn.Embedding), TOKENS)
    bag = found(Bag(lambda *sizes: nn.EmbeddingBag(*sizes, mode="sum")), TOKENS)
    assert ("permutation", "e-h", 5, "verified") in bag
    assert {*bag} <= {*one}


def test_a_traced_module_takes_one_input() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    traced = torch.jit.trace(net, torch.randn(2, 5))  # type: ignore[no-untyped-call]
    assert ("rescale", "0-2", 8, "verified") in found(traced, X)
