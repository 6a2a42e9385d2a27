"""Modes around a training are told of what the training does, and of nothing that a probe does."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import eqtoolbox as eq
from eqtoolbox.replay.apart import Apart
from tests.neutrality.belongings import Net, cross_entropy
from tests.neutrality.test_python_state import batches

Mode = tuple[AbstractContextManager[Any], Callable[[], Any]]


class Functions(TorchFunctionMode):
    told = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.told += 1
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    told = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.told += 1
        return func(*args, **(kwargs or {}))


def _counting(kind: Any) -> Mode:
    mode = kind()
    return mode, lambda: mode.told


def _flops() -> Mode:
    mode = FlopCounterMode(display=False)
    return mode, lambda: (mode.get_total_flops(), str(mode.get_flop_counts()))


def _saved() -> Mode:
    told: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        told.append(tensor.numel())
        return tensor

    return saved_tensors_hooks(pack, lambda tensor: tensor), lambda: [*told]


MODES: dict[str, Callable[[], Mode]] = {
    "functions": lambda: _counting(Functions), "operations": lambda: _counting(Dispatched),
    "flops": _flops, "saved tensors": _saved,
    "offloaded": lambda: (save_on_cpu(), lambda: None),
    "device": lambda: (torch.device("cpu"), lambda: None),
}  # fmt: skip
TOLD = [*MODES][:4]


def trained(make: Callable[[], Mode], watched: bool) -> list[Any]:
    torch.manual_seed(0)
    model, loss_fn = Net(), cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probes = {"conservation": {}, "curvature": {"k": 1, "max_matvecs": 4}}
    mode, told = make()
    found: list[Any] = []
    monitor = None
    if watched:
        monitor = eq.attach(
            model, optimizer, schedule=1, budget=None, probes=probes, on_error="raise"
        )
        loss_fn = monitor.loss(loss_fn)
    with mode:
        for batch in batches(3):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
            found.append(told())
    if monitor is not None:
        monitor.close()
    return [*found, *(p.tolist() for p in model.parameters())]


@pytest.mark.parametrize("make", MODES.values(), ids=MODES.keys())
def test_a_mode_around_the_training_is_told_of_the_training_only(make: Any) -> None:
    assert trained(make, watched=True) == trained(make, watched=False)


@pytest.mark.parametrize("name", TOLD)
def test_a_mode_that_is_told_of_a_probe_is_seen(name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(Apart, "__enter__", lambda self: None)
    monkeypatch.setattr(Apart, "__exit__", lambda self, *error: None)
    assert trained(MODES[name], watched=True) != trained(MODES[name], watched=False)


def test_modes_come_back_in_their_order_where_the_body_raises() -> None:
    inner, outer, seen = Functions(), Functions(), Dispatched()
    with outer, torch.device("cpu"), inner, seen:
        before = outer.told, inner.told, seen.told
        with pytest.raises(ValueError, match="inside"), Apart(), Apart():
            _ = nn.Linear(2, 2)(torch.ones(1, 2))
            raise ValueError("inside")
        assert (outer.told, inner.told, seen.told) == before
        _ = torch.ones(1) + 1
        after = outer.told, inner.told, seen.told
    assert all(a > b for a, b in zip(after, before, strict=True))


def test_tensors_are_made_where_the_program_says() -> None:
    with torch.device("meta"), Functions(), Apart():
        assert torch.ones(1).device.type == "meta"
