"""An act on the parameters is a cause of its own: the budget closes, whatever is measured when."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.acts import announce, check_between_steps
from tests.conftest import blobs

AT, STEPS = 6, 12


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def rescale(model: nn.Module, told: bool = True, by: float = 3.0) -> None:
    """The first layer times `by`, the second by its inverse."""
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.mul_({"0.weight": by, "0.bias": by, "2.weight": 1 / by}.get(name, 1.0))
    after = {n: p.detach() for n, p in model.named_parameters()}
    if told:
        announce(model, "rescale", "the first layer times 3", before, after)


def trained(
    act: Callable[[nn.Module], None],
    schedule: Any = 1,
    growth: float = 0.0,
    resume: bool = False,
    after: Callable[[nn.Module], Any] = lambda model: None,
) -> MemorySink:
    """Records of a training with an act before step AT."""
    model, sink = network(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.01)

    def attached() -> Any:
        return eq.attach(
            model, optimizer, probes=[Conservation(growth=growth)], schedule=schedule, budget=None,
            sinks=[sink], on_error="raise",
        )  # fmt: skip

    monitor = attached()
    for step in range(STEPS):
        if step == AT:
            if resume:
                state = monitor.state_dict()
                monitor.close()
                monitor = attached()
                monitor.load_state_dict(state)
            act(model)
        loss_fn = monitor.loss(lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
        optimizer.zero_grad()
        loss_fn(model, blobs()).backward()
        optimizer.step()
        after(model)
    monitor.close()
    return sink


def series(sink: MemorySink, name: str) -> dict[int, float]:
    return {r.step: r.value for r in sink.records if r.name == f"conservation/{name}/rescale"}


def charge(model: nn.Module) -> Tensor:
    first, second = model[0], model[2]  # type: ignore[index]
    rows = first.weight.square().sum(1) + first.bias.square() - second.weight.square().sum(0)
    return 0.5 * rows.detach().double()


@pytest.mark.parametrize("resume", [False, True], ids=["goes on", "resumed just before"])
@pytest.mark.parametrize("growth", [0.0, 10.0], ids=["always kept", "kept once"])
def test_the_budget_closes_over_an_act(growth: float, resume: bool) -> None:
    sink = trained(rescale, growth=growth, resume=resume)
    closure = [r for r in sink.records if r.name == "conservation/closure/rescale"]
    assert closure and all(r.verdict == "holds" for r in closure)
    if growth:
        return
    share = series(sink, "share_act")
    assert set(share) == set(range(AT, STEPS)), "told from the act on"
    assert share[STEPS - 1] > 0.9
    assert abs(series(sink, "share_unmeasured")[STEPS - 1]) < 1e-6


def test_an_act_that_nobody_tells_of_does_not_close() -> None:
    sink = trained(lambda model: rescale(model, told=False))
    closure = [r for r in sink.records if r.name == "conservation/closure/rescale"]
    assert "violated" in {r.verdict for r in closure}
    assert not series(sink, "share_act")


def test_between_sparse_measurements_no_step_stands_for_the_act() -> None:
    """Its share is <jump, drift> / |drift|^2 of the charges as they are."""
    charges: list[Tensor] = []
    jumps: list[Tensor] = []

    def act(model: nn.Module) -> None:
        was = charge(model)
        rescale(model)
        jumps.append(charge(model) - was)

    sink = trained(act, schedule=4, after=lambda model: charges.append(charge(model)))
    assert set(series(sink, "act")) == {8}, "once, at the next due step"
    total = charges[8] - charge(network())
    expected = float(jumps[0] @ total / (total @ total))
    assert series(sink, "share_act")[8] == pytest.approx(expected, rel=1e-5)


def test_a_run_without_acts_says_nothing_of_them() -> None:
    sink = trained(lambda model: None)
    assert not series(sink, "share_act") and not series(sink, "act")


def test_the_forecast_begins_anew() -> None:
    sink = trained(rescale)
    since = [r.facts["since"] for r in sink.records if r.name == "conservation/forecast/rescale"]
    assert since[0] == 0 and since[-1] == AT
    error = series(sink, "forecast_error")
    assert error[STEPS - 1] < 1e-5


def test_the_event_is_in_the_run_and_its_finding_names_the_act(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    run_dir = tmp_path / "run"
    with eq.attach(
        model, optimizer, probes=[Conservation(growth=0)], schedule=1, budget=None, run_dir=run_dir
    ) as monitor:
        loss_fn = monitor.loss(lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
        for step in range(4):
            if step == 2:
                rescale(model)
            optimizer.zero_grad()
            loss_fn(model, blobs()).backward()
            optimizer.step()
    run = eq.Run(run_dir)
    (event,) = [e for e in run.events if e["probe"] == "act.rescale"]
    assert event["step"] == 2 and "times 3" in event["message"]
    (finding,) = [f for f in run.findings() if f.text.startswith("Rescale charges")]
    assert "acts on the parameters" in finding.text


def test_within_a_step_it_is_refused_before_anything_moves() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    refused: list[str] = []

    def inside(*_: Any) -> None:
        try:
            check_between_steps(model)
        except RuntimeError as error:
            refused.append(str(error))

    with eq.attach(model, optimizer, probes=[Conservation()], schedule=1, budget=None) as monitor:
        loss_fn = monitor.loss(lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
        optimizer.register_step_pre_hook(inside)
        loss_fn(model, blobs()).backward()
        optimizer.step()
        check_between_steps(model)
    assert len(refused) == 1 and "after optimizer.step() has returned" in refused[0]


def test_monitors_of_other_models_and_closed_ones_hear_nothing(tmp_path: Path) -> None:
    sinks = MemorySink(), MemorySink()
    mine, other = network(), network()
    closed = eq.attach(mine, torch.optim.SGD(mine.parameters(), lr=0.1), sinks=[sinks[0]])
    closed.close()
    with eq.attach(other, torch.optim.SGD(other.parameters(), lr=0.1), sinks=[sinks[1]]):
        count = [len(s.events) for s in sinks]
        rescale(mine)
        assert [len(s.events) for s in sinks] == count
