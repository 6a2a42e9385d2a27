"""Critical sharpness against closed forms: a parabola along the step, and the edge of stability."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.critical import bracket
from eqtoolbox.sinks.memory import MemorySink


class Bowl(nn.Module):
    """L = 1/2 sum_i h_i w_i^2."""

    def __init__(self, curvatures: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(len(curvatures), dtype=torch.float64))
        self.register_buffer("h", torch.tensor(curvatures, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (self.h * self.w.square()).sum() * x.mean()


def measured(
    model: nn.Module, rates: list[float], steps: int = 3, **options: Any
) -> list[dict[str, float]]:
    groups = [{"params": [p], "lr": lr} for p, lr in zip(model.parameters(), rates, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    probe = eq.probes.CriticalSharpness(**options)
    monitor = eq.attach(model, optimizer, probes=[probe], budget=None, schedule=1)
    loss = monitor.loss(lambda model, x: model(x))
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, torch.ones(2, dtype=torch.float64)).backward()
        optimizer.step()
        names = ("factor", "sharpness", "forwards")
        found.append({n: monitor.latest(f"critical/{n}") or math.nan for n in names})
    monitor.close()
    return found


def test_along_one_direction_it_is_the_curvature() -> None:
    for row in measured(Bowl([4.0]), [0.05]):
        assert row["sharpness"] == pytest.approx(4.0, rel=0.03)
        assert row["factor"] == pytest.approx(2 / (4.0 * 0.05), rel=0.03)


def test_of_gradient_descent_on_a_parabola_it_is_the_rayleigh_quotient_of_the_gradient() -> None:
    h = torch.tensor([1.0, 3.0, 9.0], dtype=torch.float64)
    g = h.clone()  # at w = 1
    rayleigh = float((g * h * g).sum() / g.square().sum())
    (row,) = measured(Bowl(h.tolist()), [0.01], steps=1, rtol=0.005)
    assert row["sharpness"] == pytest.approx(rayleigh, rel=0.005)


def test_a_step_beyond_the_edge_is_shorter_than_itself() -> None:
    assert measured(Bowl([4.0]), [0.6], steps=1)[0]["factor"] < 1
    assert measured(Bowl([4.0]), [0.4], steps=1)[0]["factor"] > 1


def test_it_takes_few_forwards_where_the_last_step_is_near() -> None:
    first, *others = measured(Bowl([1.0, 3.0]), [0.02], steps=4)
    assert all(row["forwards"] <= 7 for row in others)
    assert first["forwards"] <= 14


@pytest.mark.parametrize("seed", range(5))
def test_the_error_holds_the_rounding_of_the_loss(seed: int) -> None:
    """A fall of 2 on top of a loss whose rounding is from far below it to far above."""
    found = []
    rate, curvature = 0.05, 4.0 + seed / 7
    for exponent in range(3, 10):
        model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        probe, sink = eq.probes.CriticalSharpness(rtol=0.002), MemorySink()
        monitor = eq.attach(model, optimizer, probes=[probe], budget=None, schedule=1, sinks=[sink])

        @monitor.loss
        def loss(model: nn.Module, x: Tensor, above: float = 10.0**exponent) -> Tensor:
            return curvature / 2 * model(x).square().mean() + above

        loss(model, torch.ones(2, 1)).backward()
        optimizer.step()
        monitor.close()
        (row,) = [r for r in sink.records if r.name == "critical/factor"]
        found.append(row)
        if row.status != "not_applicable":
            assert row.stderr is not None
            assert abs(row.value - 2 / (curvature * rate)) <= 2 * row.stderr
    assert [r.status for r in found[:2]] == ["ok"] * 2
    assert found[-1].status == "not_applicable"


def test_a_step_that_lowers_nothing_is_no_number() -> None:
    model = Bowl([4.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    monitor = eq.attach(
        model, optimizer, probes=[eq.probes.CriticalSharpness()], budget=None, schedule=1
    )
    loss = monitor.loss(lambda model, x: model(x))
    optimizer.zero_grad()
    loss(model, torch.ones(2, dtype=torch.float64)).backward()
    optimizer.step()
    assert monitor.latest("critical/factor") is None
    monitor.close()


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-12, 12), st.floats(-12, 12), st.floats(0.5, 4.0), st.sampled_from([0.2, 0.05, 0.01])
)
def test_the_bracket_holds_the_root(root: float, start: float, bent: float, rtol: float) -> None:
    where, calls = 2.0**root, []

    def rise(c: float) -> float:
        calls.append(c)
        return c * ((c / where) ** bent - 1)

    low, high = bracket(rise, 2.0**start, rtol, 80)
    assert low < where * (1 + 1e-12) and high >= where * (1 - 1e-12)
    assert high - low <= rtol * high


def test_what_falls_everywhere_or_nowhere_is_told() -> None:
    assert bracket(lambda c: -c, 1.0, 0.1, 40)[1] == math.inf
    assert bracket(lambda c: c, 1.0, 0.1, 40)[0] == 0.0
