"""What was found out about a loss is found out anew when the loss changes within a run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.noether import Noether
from tests.probes.test_shared import cross_entropy, families, net, run


class Chosen(nn.Module):
    """Calls a function and has a number, as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.drop, self.act, self.power, self.calls = nn.Dropout(0.0), torch.relu, 1, 0.5
        self.leaky = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.leaky(self.act(self.first(x)) ** self.power)
        out: Tensor = self.second(self.drop(x))
        return out


def swapped(model: Any) -> None:
    model.leaky = nn.Tanh()


def squared(model: Any) -> None:
    model.power = 2


def sloped(model: Any) -> None:
    model.leaky.negative_slope = 1.0


def other_function(model: Any) -> None:
    model.act = torch.tanh


def dropping(model: Any) -> None:
    model.drop.p = 0.5


def evaluating(model: Any) -> None:
    model.drop.eval()


def frozen(model: Any) -> None:
    model.second.bias.requires_grad_(False)


def penalised(model: Any) -> Any:
    return lambda m, b: cross_entropy(m, b) + 0.01 * m.first.weight.square().sum()


CHANGES = (
    swapped, squared, sloped, other_function, dropping, evaluating, frozen, penalised,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_what_changes_the_loss_is_found_out_anew(
    change: Callable[[Any], Any], searches: list[int], tests: list[int]
) -> None:
    between = lambda model, k: change(model) if k == 2 else None
    run(Chosen(), [Noether(), Curvature()], steps=4, between=between)
    assert searches == [0, 2]
    assert len(tests) == 2


def steady(model: Any, k: int) -> Any:
    model.calls = 4 * k + 0.5  # a schedule
    coefficient = 0.1 + k
    return lambda m, b: cross_entropy(m, b) * coefficient  # another function object each step


def test_counters_schedules_and_new_function_objects_change_nothing(
    searches: list[int], tests: list[int]
) -> None:
    run(Chosen(), [Noether(), Curvature()], steps=4, between=steady)
    assert searches == [0]
    assert len(tests) == 1


def test_losses_that_take_turns_are_each_found_out_once(searches: list[int]) -> None:
    spoilt = lambda m, b: cross_entropy(m, b) + 0.01 * m.first.weight.square().sum()
    losses = (cross_entropy, spoilt)
    records = run(Chosen(), [Noether()], steps=5, between=lambda model, k: losses[k % 2])
    assert searches == [0, 1]
    assert "rescale" in families(records, 2) and "rescale" not in families(records, 3)


def test_drift_starts_again_where_the_symmetries_are_others() -> None:
    def swap(model: Any, k: int) -> None:
        if k == 2:
            model[1] = nn.Tanh()

    records = run(net(), [Conservation()], steps=4, between=swap)
    names = [{r.name for r in records if r.step == k and "/drift/" in r.name} for k in range(4)]
    assert names[0] == names[1] != names[2] == names[3]
    last = {r.name: r.value for r in records if r.step == 3 and "/drift/" in r.name}
    model = net()
    run(model, [Conservation()], steps=2)
    model[1] = nn.Tanh()
    fresh = run(model, [Conservation()], steps=2)
    known = {r.name: r.value for r in fresh if r.step == 1 and "/drift/" in r.name}
    assert last == pytest.approx(known, rel=1e-5)
