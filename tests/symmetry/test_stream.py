"""The gradient of a large model, parameter by parameter, is the gradient."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from eqtoolbox.weights.search import stream
from eqtoolbox.weights.search.stream import Awaited, streamed

X = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Tied(nn.Module):
    """A weight that is read twice, once transposed; a parameter that is not read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bias = nn.Linear(5, 5), nn.Parameter(torch.ones(5))
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x) * self.bias) @ self.a.weight


class Checkpointed(Tied):
    """Reads its weights again in the backward."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


class Twice(torch.autograd.Function):
    """x * w, keeping w where no hook sees it."""

    @staticmethod
    def forward(ctx: object, x: Tensor, w: Tensor) -> Tensor:
        ctx.kept = (x, w)  # type: ignore[attr-defined]
        return x * w

    @staticmethod
    def backward(ctx: object, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.kept  # type: ignore[attr-defined]
        return g * w, (g * x).sum(0)


class Custom(Tied):
    """Its own function keeps a parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return Twice.apply(torch.tanh(self.a(x)), self.bias)


class Tables(nn.Module):
    """A table that is the head as well, one that is only looked up in, one of rare rows."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 5, padding_idx=0)
        self.places = nn.Embedding(7, 5)
        self.rare = nn.Embedding(4, 5, scale_grad_by_freq=True)
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        drawn = (x.sum(1) * 4).long() % 9
        x = x + self.tokens(drawn) * self.tokens(drawn.flip(0)) + self.places(drawn // 2)
        return (x + self.rare(drawn % 4)) @ self.tokens.weight.T


class LaterTables(Tables):
    """Looks up again in the backward."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


@pytest.mark.parametrize("together", [0, 10, 2**18])
@pytest.mark.parametrize("kind", [Tied, Checkpointed, Custom, Tables, LaterTables])
def test_streamed_gradients_are_those_of_autograd(
    kind: type[nn.Module], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_TOGETHER", together)
    torch.manual_seed(0)
    model = kind().double()
    params = {n: p.detach() for n, p in model.named_parameters()}
    loss = lambda p: functional_call(model, p, (X,)).square().sum()
    leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
    expected = torch.autograd.grad(loss(leaves), list(leaves.values()), materialize_grads=True)
    found: dict[str, Tensor] = {}

    def receive(given: Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> None:
        assert given.keys() == gradient.keys()
        assert all(torch.equal(p, params[n]) for n, p in given.items())
        assert all(g.layout == torch.strided for g in gradient.values())
        found.update({n: g.clone() for n, g in gradient.items()})

    streamed(loss, list(params), lambda n: params[n].clone(), receive)
    assert found.keys() == params.keys()
    pairs = zip(params, expected, strict=True)
    assert all(torch.allclose(found[n], g, rtol=1e-14, atol=1e-14) for n, g in pairs)
    assert found["idle"].abs().max() == 0


@pytest.mark.parametrize("together", [0, 2**18])
def test_no_parameter_is_held_after_the_backward_has_read_it(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_TOGETHER", together)
    torch.manual_seed(0)
    params = {n: p.detach() for n, p in Tied().double().named_parameters()}
    alive: dict[str, Tensor] = {}
    released: list[str] = []

    def loss(p: dict[str, Tensor]) -> Tensor:
        alive.update(p)
        return functional_call(Tied().double(), p, (X,)).square().sum()

    def receive(given: Mapping[str, Tensor], _: Mapping[str, Tensor]) -> None:
        assert all(torch.equal(p, params[n]) for n, p in given.items())
        assert all(bool(alive[n].isnan().all()) == (n in released) for n in alive)

    streamed(loss, list(params), lambda n: params[n].clone(), receive, release=released.append)
    assert set(released[:2]) == {"a.bias", "idle"}, "neither is read by the backward"
    assert set(released) == params.keys()


@pytest.mark.parametrize("kind", [Tied, Checkpointed, Custom])
def test_of_what_is_wanted_alone_the_gradients_are_the_same(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().double()
    params = {n: p.detach() for n, p in model.named_parameters()}
    loss = lambda p: functional_call(model, p, (X,)).square().sum()

    def found(wanted: set[str] | None) -> dict[str, Tensor]:
        gradients: dict[str, Tensor] = {}

        def receive(given: Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> None:
            assert all(torch.equal(p, params[n]) for n, p in given.items())
            gradients.update({n: g.clone() for n, g in gradient.items()})

        streamed(loss, list(params), lambda n: params[n].clone(), receive, wanted)
        return gradients

    every, some = found(None), found({"a.weight", "idle"})
    assert some.keys() == {"a.weight", "idle"}
    assert all(torch.allclose(g, every[n], rtol=1e-14) for n, g in some.items())


def test_a_gradient_that_is_awaited_comes_once_asked_for() -> None:
    torch.manual_seed(0)
    params = {n: p.detach() for n, p in Tied().double().named_parameters()}
    loss = lambda p: functional_call(Tied().double(), p, (X,)).square().sum()
    now: dict[str, Tensor] = {}
    later: dict[str, Tensor] = {}
    streamed(loss, list(params), lambda n: params[n].clone(), lambda _, g: now.update(g))
    awaited = Awaited(loss, list(params), lambda n: params[n].clone())
    torch.randn(3) @ torch.randn(3)  # whatever goes on meanwhile
    assert not later
    awaited.backward(lambda _, g: later.update(g))
    assert now.keys() == later.keys() == params.keys()
    assert all(torch.equal(g, later[n]) for n, g in now.items())
