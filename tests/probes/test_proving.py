"""Exact products are compared with differences on few samples, where these run all operations."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes import proving
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.field import NEAR
from eqtoolbox.probes.proving import self_test
from eqtoolbox.probes.self_test import SelfTest
from eqtoolbox.replay.objective import Objective
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.memory import samples
from tests.probes.test_copies import objective_of
from tests.probes.test_light_laws import large

SAMPLES = 32


def plain(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def of_few_detached(model: nn.Module, batch: Any) -> Tensor:
    """The last samples pull at half of what the others do, by a cut that these alone run."""
    each = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    if len(each) == SAMPLES:
        weight = each[-4:].detach().square()
        return (each[:-4].sum() + (weight * each[-4:]).sum()) / SAMPLES
    return each.mean()


@pytest.mark.parametrize(("loss", "held"), [(plain, False), (of_few_detached, True)])
def test_products_are_compared_on_few_samples_where_all_operations_are_torchs_own(
    monkeypatch: pytest.MonkeyPatch, loss: Any, held: bool
) -> None:
    torch.manual_seed(0)
    model, batch = large(SAMPLES)
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.01), MemorySink()
    compared, of = proving.compared, list[int]()

    def counted(objective: Objective, *given: Any) -> SelfTest:
        of.append(samples(objective))
        return compared(objective, *given)

    monkeypatch.setattr(proving, "compared", counted)
    probes = [Curvature(k=1, smallest=False)]
    with eq.attach(model, optimizer, probes=probes, schedule=1, sinks=[sink]) as monitor:
        monitor.loss(loss)(model, batch).backward()
        optimizer.step()
    (row,) = [r for r in sink.records if r.name == "curvature/self_test/difference"]
    assert row.facts["mode"] == ("held" if held else "exact")
    assert row.status == "ok" and (row.value > 0.01) == held
    assert of == [SAMPLES if held else 8]


class Raw(torch.autograd.Function):
    """The sine, whose backward is of raw data: its second derivative is lost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x.detach()
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.x.cos()


class Sine(nn.Module):
    """The sine, with the derivative of its derivative or without."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.broken = broken

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = Raw.apply(x) if self.broken else x.sin()
        return made


class Beside(nn.Module):
    """A sharp part that is right, and one beside it of a hundredth of its curvature."""

    def __init__(self) -> None:
        super().__init__()
        self.sharp, self.flat = nn.Linear(8, 8), nn.Linear(8, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.sharp(x).sum(1), Raw.apply(self.flat(x))


def of_both(model: nn.Module, batch: Tensor) -> Tensor:
    sharp, flat = model(batch)
    return sharp.square().mean() + 0.2 * (flat - 1).square().sum(1).mean()


@pytest.mark.parametrize("seed", range(3))
def test_a_second_derivative_that_is_wrong_beside_what_is_sharp_is_seen(seed: int) -> None:
    torch.manual_seed(seed)
    model, batch, sink = Beside(), torch.randn(64, 8), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    probes = [Curvature(k=1, smallest=False)]
    with eq.attach(model, optimizer, probes=probes, schedule=1, sinks=[sink]) as monitor:
        monitor.loss(of_both)(model, batch).backward()
        optimizer.step()
    (row,) = [r for r in sink.records if r.name == "curvature/self_test/difference"]
    assert row.facts["mode"] == "differenced" and row.value > 0.03
    assert "look at the backward of Raw" in row.note


@pytest.mark.parametrize("broken", [False, True])
def test_where_memory_is_short_products_are_compared_on_the_smallest_parameters(
    broken: bool,
) -> None:
    """Biases of every layer see what is wrong in any of them."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, 64), Sine(broken), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)]
    model, (x, y) = nn.Sequential(*layers), (torch.randn(32, 16), torch.randint(3, (32,)))
    params = {n: p.detach() for n, p in model.named_parameters()}
    objective = objective_of(model, plain, (x, y))
    size = sum(p.nbytes for p in params.values())
    found = self_test(objective, params, timing=False, room=6.0 * size)
    assert "on 4 of 6 parameters, the smallest, to stay within memory=" in found.reason
    assert found.mode == ("differenced" if broken else "exact")
    assert (found.difference > NEAR) == broken
    whole = self_test(objective, params, timing=False)
    assert whole.mode == found.mode and "memory" not in whole.reason
