"""What belongs to a run lives in the run: probes that are used again find out for themselves."""

import pickle
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.attach.entry import PROBES
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.discrete import Discrete
from eqtoolbox.probes.engine import Engine
from eqtoolbox.probes.noether import Noether
from eqtoolbox.probes.spectrum import Spectrum
from eqtoolbox.probes.tracking import Tracking
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.monitor import Monitor
from eqtoolbox.watch.shared import Shared
from tests.conftest import blobs, mlp

NAMES = ("noether", "conservation", "discrete", "curvature")


class Blind(Shared):
    """The fault: what was found out once is believed of everything."""

    def get(self, kind: str, about: Any, make: Any, restore: Any = None, **how: Any) -> Any:
        return super().get(kind, "anything", make, restore, **how)


class WrongSecond(torch.autograd.Function):
    """x -> x^2 / 2 with a right first and a wrong second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * x.detach()


class Halved(nn.Module):
    """x^2 / 2."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = WrongSecond.apply(x) if self.wrong else x * x / 2
        return out


def halving(wrong: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), Halved(wrong), nn.Linear(16, 3))


def net(activation: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return mlp(6, 8, 3, activation=activation)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def attached(model: nn.Module, probes: Any, **options: Any) -> tuple[Monitor, MemorySink, Any]:
    sink, optimizer = MemorySink(), torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = eq.attach(
        model, optimizer, probes=probes, budget=None, sinks=[sink], on_error="raise", **options
    )
    return monitor, sink, optimizer


def step(model: nn.Module, loss: Any, optimizer: Any) -> None:
    optimizer.zero_grad()
    loss(model, blobs()).backward()
    optimizer.step()


def run(
    model: nn.Module,
    probes: Any,
    steps: int = 1,
    shared: Shared | None = None,
    between: Callable[[Any, int], Any] = lambda model, step: None,
    loss: Any = cross_entropy,
) -> list[Record]:
    """Records of a training; `between` may change the model before a step, or return a loss."""
    monitor, sink, optimizer = attached(model, probes)
    if shared is not None:
        monitor._catch.shared = shared
    with monitor:
        caught = monitor.loss(loss)
        for k in range(steps):
            other = between(model, k)
            caught = monitor.loss(other) if other is not None else caught
            step(model, caught, optimizer)
    return sink.records


def sharpness(records: list[Record]) -> float:
    return next(r.value for r in records if r.name == "tracking/sharpness")


def families(records: list[Record], at: int = 0) -> set[str]:
    return {r.name.split("/")[2] for r in records if "noether/dimension" in r.name and r.step == at}


# -- one list of probes, several models ---------------------------------------------------------


def test_a_probe_used_again_tests_the_derivatives_of_the_second_model() -> None:
    probes = [Tracking()]
    right = sharpness(run(halving(False), probes))
    again = sharpness(run(halving(True), probes))
    assert again == pytest.approx(right, rel=2e-3)
    lent = Blind()
    run(halving(False), probes, shared=lent)
    wrong = sharpness(run(halving(True), probes, shared=lent))
    assert abs(wrong / right - 1) > 5e-3  # the products that the test refuses


@pytest.mark.parametrize("order", [(nn.ReLU, nn.Tanh), (nn.Tanh, nn.ReLU)])
def test_a_probe_used_again_finds_the_symmetries_of_the_second_model(order: Any) -> None:
    probes, (first, second) = [Noether()], order
    fresh = families(run(net(second), [Noether()]))
    run(net(first), probes)
    assert families(run(net(second), probes)) == fresh
    assert ("rescale" in fresh) == (second is nn.ReLU)
    lent = Blind()
    run(net(first), probes, shared=lent)
    assert families(run(net(second), probes, shared=lent)) != fresh


def test_two_attachments_at_once_do_not_see_each_other() -> None:
    alone = [run(net(kind), [Noether()]) for kind in (nn.ReLU, nn.Tanh)]
    probes, sinks = [Noether()], []
    with ExitStack() as stack:
        parts = []
        for kind in (nn.ReLU, nn.Tanh):
            model = net(kind)
            monitor, sink, optimizer = attached(model, probes)
            sinks.append(sink)
            parts.append((model, stack.enter_context(monitor).loss(cross_entropy), optimizer))
        for part in parts:
            step(*part)
    for one, sink in zip(alone, sinks, strict=True):
        known = {r.name: r.value for r in one if "noether/" in r.name and "cost" not in r.name}
        found = {r.name: r.value for r in sink.records}
        assert {name: found[name] for name in known} == pytest.approx(known, nan_ok=True)


# -- how often ----------------------------------------------------------------------------------


def given(kind: str, folder: Path) -> Any:
    tables = "\n".join(f"[probes.{name}]" for name in NAMES)
    (folder / "probes.toml").write_text(tables)
    return {
        "list": [Noether(), Conservation(), Discrete(), Curvature()],
        "tables": {name: {} for name in NAMES},
        "file": folder / "probes.toml",
        "preset": "full",
    }[kind]


@pytest.mark.parametrize("kind", ["list", "tables", "file", "preset"])
def test_probes_of_one_run_share_one_search_and_one_self_test(
    kind: str, tmp_path: Path, searches: list[int], tests: list[int]
) -> None:
    records = run(net(), given(kind, tmp_path), steps=3)
    assert searches == [0]
    assert len(tests) == 1
    assert len([r for r in records if r.name.endswith("self_test/repeat")]) == 1


def test_every_run_of_a_sweep_searches_and_tests_once(
    searches: list[int], tests: list[int]
) -> None:
    probes = [Noether(), Curvature()]
    for seed in range(3):
        run(net(seed=seed), probes, steps=2)
    assert len(searches) == len(tests) == 3


def test_engines_of_other_options_test_for_themselves(tests: list[int]) -> None:
    low = Engine(memory="low")
    run(net(), [Curvature(), Tracking(engine=Engine()), Spectrum(engine=low)], steps=2)
    assert len(tests) == 2


# -- stop and resume ----------------------------------------------------------------------------


def resumed(state: dict[str, Any], model: nn.Module) -> list[Record]:
    monitor, sink, optimizer = attached(model, [Curvature(), Tracking()])
    monitor.load_state_dict(state)
    with monitor:
        step(model, monitor.loss(cross_entropy), optimizer)
    return sink.records


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, Any]:
    model = net()
    monitor, _, optimizer = attached(model, [Curvature(), Tracking()])
    with monitor:
        step(model, monitor.loss(cross_entropy), optimizer)
    torch.save(monitor.state_dict(), tmp_path / "state.pt")
    found: dict[str, Any] = torch.load(tmp_path / "state.pt", weights_only=True)
    return found


def test_a_resumed_run_trusts_the_self_test_of_the_same_model(
    saved: dict[str, Any], tests: list[int]
) -> None:
    records = resumed(saved, net())
    assert not tests
    assert not [r for r in records if "self_test" in r.name]
    assert any(r.name == "tracking/sharpness" and r.status == "ok" for r in records)


def test_a_resumed_run_tests_another_model_of_the_same_shapes(
    saved: dict[str, Any], tests: list[int]
) -> None:
    records = resumed(saved, net(nn.Tanh))
    assert len(tests) == 1
    assert [r for r in records if "self_test" in r.name]


def test_states_of_earlier_versions_load_and_are_tested_anew(
    saved: dict[str, Any], tests: list[int]
) -> None:
    del saved["shared"]
    saved["references"]["curvature"]["engine"] = {"mode": "exact"}
    assert [r for r in resumed(saved, net()) if r.name == "curvature/sharpness"]
    assert len(tests) == 1


# -- probes are options -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROBES.values(), ids=lambda kind: kind.name)
def test_probes_are_equal_by_their_options_before_and_after_a_run(kind: Any) -> None:
    used, fresh = kind(), kind()
    run(net(), [used])
    assert used == fresh
    assert hash(used) == hash(fresh)
    again = pickle.loads(pickle.dumps(used))
    assert again == used


def test_probes_of_other_options_differ() -> None:
    assert Curvature(k=3) != Curvature()
    assert Curvature(engine=Engine(memory="low")) != Curvature()
    with pytest.raises(AttributeError, match="cannot assign"):
        Engine().memory = "low"  # type: ignore[misc]
