"""Optimizers whose `step` calls the `step` of their parent: torch calls hooks for each."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import eqtoolbox as eq
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.nested import nested
from tests.conftest import blobs

STEPS = 8


class Shrinking(torch.optim.SGD):
    """Decoupled decay after the step, by `super().step()`."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - group["lr"] * 0.01)
        return result


class Twice(Shrinking):
    """One more of the kind."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Flat(torch.optim.Optimizer):
    """What `Shrinking` does, by one step that torch calls hooks for."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, torch.optim.SGD([torch.zeros(1)], lr=lr).defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"]).mul_(1 - group["lr"] * 0.01)


def series(kind: Any, several: bool = False, closure: bool = False) -> dict[str, list[Any]]:
    torch.optim.SGD([torch.zeros(1)])  # from now on torch calls hooks for its parent's steps
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    parts = [model[:1], model[2:]] if several else [model]
    optimizers = [kind(part.parameters(), lr=0.1) for part in parts]
    given = optimizers if several else optimizers[0]
    sink = MemorySink()
    monitor = eq.attach(model, given, schedule=2, budget=None, sinks=[sink], on_error="raise")
    loss = monitor.loss(lambda m, b: F.cross_entropy(m(b[0]), b[1]))

    def evaluate() -> Any:
        for optimizer in optimizers:
            optimizer.zero_grad()
        value = loss(model, blobs())
        value.backward()
        return value

    for _ in range(STEPS):
        if closure:
            optimizers[0].step(evaluate)
            continue
        evaluate()
        for optimizer in optimizers:
            optimizer.step()
    monitor.close()
    assert monitor.step == STEPS
    found: dict[str, list[Any]] = {}
    for r in sink.records:
        if not r.name.startswith("cost/"):
            found.setdefault(r.name, []).append((r.step, r.status, repr(r.value)))
    return found


@pytest.mark.parametrize("kind", [Shrinking, Twice])
@pytest.mark.parametrize("given", [{}, {"several": True}, {"closure": True}], ids=str)
def test_a_step_within_a_step_is_none_of_its_own(kind: Any, given: dict[str, bool]) -> None:
    found = series(kind, **given)
    assert {step for step, *_ in found["training/loss"]} == {0, 2, 4, 6}
    assert found["conservation/drift/rescale"]
    assert found["monitor/closure_grad_cos"][0][1] == "ok" or given.get("closure")


def test_it_is_measured_like_one_that_has_no_step_inside() -> None:
    """But for the name of the class, and the hook that torch gives it."""
    found, expected = series(Shrinking), series(Flat)
    assert found == expected


def test_only_a_step_inside_of_a_step_is_nested() -> None:
    torch.optim.SGD([torch.zeros(1)])
    model = nn.Linear(2, 2)
    other = Twice(model.parameters(), lr=0.1)
    optimizer, seen = Twice(model.parameters(), lr=0.1), list[bool]()

    def hook(own: Any, args: Any, kwargs: Any) -> None:
        assert not nested(other)
        seen.append(nested(own))

    optimizer.register_step_pre_hook(hook)
    optimizer.step()
    assert seen == [False, True, True]
    with pytest.raises(ZeroDivisionError):  # a step that fails leaves no trace
        optimizer.step(lambda: 1 / 0)
    seen.clear()
    optimizer.step()
    assert seen == [False, True, True]
