"""The transaction: parameters and all that belongs to them move together, or not at all."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.act.motion import Exchange, Flow, Motion
from eqtoolbox.act.transaction import carry_out
from eqtoolbox.weights import ContinuousSymmetry, discover
from eqtoolbox.weights.families.discrete import Permuting

Params = Iterator[nn.Parameter]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "dampened": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, dampening=0.5),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True),
    "fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.005, momentum=0.5, centered=True),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1.0),
    "asgd": lambda p: torch.optim.ASGD(p, 0.05, t0=3),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
}


STATELESS = ("sgd", "asgd")  # averages of ASGD are not read by its steps


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)
    ).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 4, generator=generator).double(), torch.arange(16) % 3


def motion(model: nn.Module, family: str) -> Motion:
    generator = torch.Generator().manual_seed(2)
    s = next(s for s in discover(model, data()) if s.family == family)
    if isinstance(s, ContinuousSymmetry):
        c = torch.randn(s.dimension, generator=generator, dtype=torch.float64)
        return Flow(form=s.form, coefficients=c)
    assert isinstance(s, Permuting)
    return Exchange.of(s, s.draw(generator), dict(model.named_parameters()))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, many: int) -> list[float]:
    x, y = data()
    losses = []
    for _ in range(many):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_goes_on_the_same_after_units_changed_places(name: str) -> None:
    model = network()
    moving = motion(model, "permutation")
    optimizer = OPTIMIZERS[name](model.parameters())
    steps(model, optimizer, 6)
    bare, state_left = copy.deepcopy((model, optimizer))
    reference = steps(*copy.deepcopy((model, optimizer)), 6)
    carry_out(model, moving, optimizer, act="move", said="")
    carry_out(bare, moving, act="move", said="")
    assert steps(model, optimizer, 6) == pytest.approx(reference, rel=1e-9)
    assert (steps(bare, state_left, 6) == pytest.approx(reference, rel=1e-7)) == (name in STATELESS)
