"""Values are evaluated without what autograd would save, and are the same to the bit."""

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox.replay.unsaved as unsaved
from eqtoolbox.probes.prediction import Prediction, predicting
from eqtoolbox.replay.gradients import valued
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import Objective
from tests.conftest import blobs, mlp
from tests.loops.inner_losses import PROBLEMS


def objective(model: nn.Module, loss: Any, batch: Any) -> Objective:
    buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
    random = RandomState()
    return Objective(model=model, loss_fn=loss, batch=batch, random=random, buffers=buffers)


def value(of: Objective) -> Tensor:
    with torch.no_grad():
        return of.loss(of.parameters())


class Deep(nn.Module):
    """Linear layers and tanh; it notes how many outputs are alive when the last layer is done."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(5))
        self.alive = 0

    def forward(self, x: Tensor) -> Tensor:
        made = []
        for layer in self.layers:
            x = torch.tanh(layer(x))
            made.append(weakref.ref(x))
        self.alive = sum(ref() is not None for ref in made[:-1])
        return x


@pytest.mark.parametrize(("least", "left"), [(0, 0), (2**62, 4)], ids=["unsaved", "saved"])
def test_layers_give_back_what_they_made(
    least: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A linear layer saves its input; where nothing is saved, none is left at the end."""
    monkeypatch.setattr(unsaved, "LARGE", least)

    def loss(model: Deep, x: Tensor) -> Tensor:
        return 0 * model(x).mean() + model.alive

    assert float(value(objective(Deep(), loss, torch.randn(5, 6)))) == left


@pytest.mark.parametrize(("least", "left"), [(0, 0), (2**62, 4)], ids=["unsaved", "saved"])
def test_a_model_evaluated_time_and_again_saves_nothing_either(
    least: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsaved, "LARGE", least)
    of = objective(Deep(), lambda model, x: model(x).mean(), torch.randn(5, 6))

    def alive(f: Prediction) -> int:
        with torch.no_grad():
            valued(f.model, f.inputs)
        return int(f.model.alive)

    assert predicting(of, of.parameters(), alive) == left


class _Forces(nn.Module):
    """-dE/dx, E = (sum W x)^2 n for the n-th call: what is called again has another answer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1, bias=False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = x.detach().requires_grad_()
        energy = self.calls * self.layer(x).square().sum()
        return -torch.autograd.grad(energy, x, create_graph=True)[0]


def test_a_model_that_differentiates_is_called_no_more_often_than_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unsaved, "LARGE", 0)
    model, x = _Forces(), torch.randn(5, 6)
    of = objective(model, lambda model, x: model(x).square().mean(), x)

    def forces(f: Prediction) -> list[Tensor]:
        with torch.no_grad():
            return [f.outputs, *(valued(f.model, f.inputs) for _ in range(2))]

    w = model.layer.weight.detach()
    for n, found in enumerate(predicting(of, of.parameters(), forces), 1):
        torch.testing.assert_close(found, -2 * n * (x @ w.T) * w)
    assert model.calls == 0


def test_what_is_differentiated_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsaved, "LARGE", 0)
    of = objective(mlp(6, 5, 3), lambda m, b: F.cross_entropy(m(b[0]), b[1]), blobs())
    params = {n: p.requires_grad_() for n, p in of.parameters().items()}
    with of.isolated(), torch.enable_grad():
        found = torch.autograd.grad(of.loss(params), list(params.values()))
    assert all(bool(g.any()) for g in found)


def _swallows(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    try:
        return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0].square().mean()
    except RuntimeError:
        return torch.zeros((), requires_grad=True)


def _catches_func(model: nn.Module, x: Tensor) -> Tensor:
    """A loss that has another way where torch.func refuses."""
    try:
        return torch.func.grad(lambda x: model(x).square().sum())(x).square().mean()
    except RuntimeError:
        return torch.full((), 7.0, requires_grad=True)


def _says_it_otherwise(model: nn.Module, x: Tensor) -> Tensor:
    try:
        return torch.func.vmap(model)(x).square().mean()
    except RuntimeError:
        raise ValueError("in words of its own") from None


def _disables(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        return model(x).square().mean()


class _Counting:
    """A loss whose value is how often it was called before, which a replay puts back."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        self.calls += 1
        drawn = torch.rand(())
        return _swallows(model, x) + self.calls + drawn


@pytest.mark.parametrize(
    "loss", [_swallows, _catches_func, _says_it_otherwise, _disables, _Counting()]
)
def test_what_a_first_try_did_is_undone(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for least in (0, 2**62):
        monkeypatch.setattr(unsaved, "LARGE", least)
        torch.manual_seed(0)
        found.append(value(objective(nn.Linear(6, 2), loss, torch.ones(3, 6))))
    assert torch.equal(*found) and float(found[0]) not in (0.0, 7.0)
    assert getattr(loss, "calls", 0) == 0


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_loss_that_differentiates_has_its_value(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for least in (0, 2**62):
        monkeypatch.setattr(unsaved, "LARGE", least)
        torch.manual_seed(0)
        found.append(value(objective(*PROBLEMS[name]())))
    assert torch.equal(*found)
