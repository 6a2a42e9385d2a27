"""What a loop makes of its loss before the backward is measured, or named where it cannot be."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.capture.redone import ENTRIES

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(20) % 3
WEIGHTS = torch.linspace(0, 2, 20)
Loss = Callable[[nn.Module], Tensor]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def sharpness(criterion: nn.Module, loss: Loss) -> tuple[float, str]:
    """What is recorded for a step on `loss`, of which the monitor is given the criterion."""
    model, sink = network(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(
        model, optimizer, criterion=criterion, probes=[Curvature(k=1)], schedule=1, budget=None,
        sinks=[sink], on_error="raise",
    ):  # fmt: skip
        loss(model).backward()
        optimizer.step()
    (record,) = [r for r in sink.records if r.name == "curvature/sharpness"]
    return record.value, record.status


def truth(loss: Loss) -> float:
    """The top eigenvalue by double backward."""
    model = network()
    params = list(model.parameters())
    rows = torch.autograd.grad(loss(model), params, create_graph=True)
    flat = torch.cat([row.flatten() for row in rows])
    second = [torch.autograd.grad(g, params, retain_graph=True) for g in flat]
    dense = torch.stack([torch.cat([row.flatten() for row in of]) for of in second])
    return float(torch.linalg.eigvalsh((dense + dense.T) / 2)[-1])


MEAN, EACH = nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none")
MADE: dict[str, tuple[nn.Module, Callable[[nn.Module], Loss]]] = {
    "root": (MEAN, lambda c: lambda m: c(m(X), Y).sqrt()),
    "scaled root": (MEAN, lambda c: lambda m: 100 * c(m(X), Y).sqrt()),
    "square": (MEAN, lambda c: lambda m: c(m(X), Y) ** 2),
    "logarithm": (MEAN, lambda c: lambda m: c(m(X), Y).log()),
    "flooded": (MEAN, lambda c: lambda m: (c(m(X), Y) - 0.5).abs() + 0.5),
    "mean of each": (EACH, lambda c: lambda m: c(m(X), Y).mean()),
    "weighted": (EACH, lambda c: lambda m: (c(m(X), Y) * WEIGHTS).sum() / WEIGHTS.sum()),
    "hardest": (EACH, lambda c: lambda m: c(m(X), Y).topk(5).values.mean()),
    "twice on one output": (
        MEAN, lambda c: lambda m: (lambda out: c(out, Y) + 0.3 * c(2 * out, Y))(m(X)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_what_is_differentiated_is_what_is_measured(name: str) -> None:
    criterion, make = MADE[name]
    value, status = sharpness(criterion, make(criterion))
    assert status == "ok"
    assert value == pytest.approx(truth(make(criterion)), rel=0.01)
    if name in ("root", "square", "logarithm"):  # the loss alone has another curvature
        alone = truth(lambda m: MEAN(m(X), Y) * {"root": 0.5, "square": 2.0}.get(name, 1.0))
        assert abs(alone - value) > 0.02 * value


class Affine(nn.Module):
    """Cross-entropy in a range that every function takes."""

    def __init__(self, factor: float, rest: float) -> None:
        super().__init__()
        self.factor, self.rest = factor, rest

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.factor * F.cross_entropy(outputs, labels) + self.rest


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(torch, name) for name in ENTRIES},
    "softplus": lambda x: F.softplus(x, beta=2.0),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "exp of a part": lambda x: (x / 2).exp(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_the_loss_are_measured(name: str) -> None:
    criterion = Affine(0.25, 1.1 if name == "acosh" else 0.0)
    loss = lambda m: FUNCTIONS[name](criterion(m(X), Y))
    value, status = sharpness(criterion, loss)
    assert status == "ok"
    assert value == pytest.approx(truth(loss), rel=0.01)


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (lambda m: MEAN(o := m(X), Y) + 0.05 * o.square().mean(), "adds a result of Mul to it"),
        (lambda m: MEAN(m(X), Y) + 1e-3 * m[0].weight.square().sum(), "adds a result of Mul"),
        (lambda m: F.gelu(MEAN(m(X), Y) / 2).exp(), "differentiates a result of Exp of it"),
        (lambda m: torch.sin(MEAN(m(X), Y) / 2), "differentiates a result of Sin of it"),
        (lambda m: torch.logaddexp(MEAN(m(X), Y), torch.ones(())), "a result of Logaddexp of it"),
        (lambda m: torch.special.i0(MEAN(m(X), Y)), "a result of I0 of it"),
    ],
)
def test_what_is_differentiated_besides_is_named_however_small(loss: Loss, why: str) -> None:
    with pytest.warns(RuntimeWarning, match=f"another loss .*{why}"):
        sharpness(MEAN, loss)


@pytest.mark.parametrize(
    "loss",
    [
        lambda m: 0.5 * MEAN(m(X), Y),
        lambda m: MEAN(m(X), Y) / torch.tensor(3.0) + 1,
        lambda m: MEAN(m(X), Y) + MEAN(m(-X), Y),
        lambda m: (o := MEAN(m(X), Y)) * o.detach().exp(),
        lambda m: torch.stack([MEAN(m(X), Y), 3 * MEAN(m(-X), Y)]).clamp(min=0).max(),
        lambda m: torch.where(torch.tensor(True), MEAN(m(X), Y), torch.zeros(())),
    ],
)
def test_sums_and_multiples_of_caught_losses_are_accused_of_nothing(loss: Loss) -> None:
    value, status = sharpness(MEAN, loss)  # warnings are errors here
    assert status == "ok"
    assert value == pytest.approx(truth(loss), rel=0.01)
