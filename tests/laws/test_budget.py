"""The drift budget closes for every optimizer, and its terms are what their names say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.probes.conservation import CAUSES, Conservation
from eqtoolbox.record import Record
from eqtoolbox.sinks.memory import MemorySink
from tests.conftest import blobs

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd with decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov with decay": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "maximising": lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.second, self.third = nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.norm(self.first(x))))))


def measured(
    make: Callable[[Any], torch.optim.Optimizer], steps: int = 12, schedule: Any = 1
) -> list[Record]:
    torch.manual_seed(0)
    model, sink = Net(), MemorySink()
    optimizer = make(model.parameters())
    ascent = bool(optimizer.param_groups[0].get("maximize"))
    probes = [Conservation()]
    with eq.attach(
        model, optimizer, probes=probes, schedule=schedule, budget=None, sinks=[sink],
        on_error="raise",
    ) as monitor:  # fmt: skip
        sign = -1.0 if ascent else 1.0
        loss_fn = monitor.loss(lambda m, b: sign * nn.functional.cross_entropy(m(b[0]), b[1]))
        for _ in range(steps):
            optimizer.zero_grad()
            loss_fn(model, blobs()).backward()
            optimizer.step()
    return sink.records


def value(records: list[Record], name: str, step: int = -1) -> float:
    series = [r for r in records if r.name == f"conservation/{name}"]
    return series[step].value


FAMILIES = ("rescale", "scale", "translation")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_budget_closes_in_float32(name: str) -> None:
    records = measured(OPTIMIZERS[name])
    for family in FAMILIES:
        closures = [r for r in records if r.name == f"conservation/closure/{family}"]
        assert len(closures) == 12
        assert max(r.value for r in closures) < 1e-6


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_terms_add_up_to_the_drift_of_the_step(name: str) -> None:
    records = measured(OPTIMIZERS[name])
    for family in FAMILIES:
        total = sum(value(records, f"{cause}/{family}") for cause in CAUSES)
        assert total == pytest.approx(value(records, f"step_drift/{family}"), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shares_measured_at_every_step_explain_the_whole_drift(name: str) -> None:
    records = measured(OPTIMIZERS[name])
    for family in FAMILIES:
        if value(records, f"drift/{family}") > 1e-6:
            assert abs(value(records, f"share_unmeasured/{family}")) < 1e-3


def test_the_symmetry_term_is_rounding_for_exact_symmetries() -> None:
    records = measured(OPTIMIZERS["sgd with decay"])
    for family in ("rescale", "translation"):
        assert abs(value(records, f"symmetry/{family}")) < 1e-7
    decay = value(records, "decay/rescale")
    assert abs(decay) > 1e-5


def test_plain_sgd_has_no_optimizer_term_and_momentum_has_one() -> None:
    plain, momentum = measured(OPTIMIZERS["sgd"]), measured(OPTIMIZERS["momentum"])
    assert abs(value(plain, "optimizer/rescale")) < 1e-7
    assert abs(value(momentum, "optimizer/rescale")) > 1e-4


def test_without_decay_the_decay_term_is_exactly_zero() -> None:
    records = measured(OPTIMIZERS["adam"])
    assert all(value(records, f"decay/{family}") == 0 for family in FAMILIES)


def test_drift_of_plain_sgd_is_second_order_in_the_learning_rate() -> None:
    """One step: Q drifts by eta^2 <g, A g> / 2 for quadratic charges and not at all for linear."""
    drifts = [
        value(measured(lambda p, lr=lr: torch.optim.SGD(p, lr=lr), steps=1), "drift/rescale")
        for lr in (0.1, 0.05)
    ]
    assert drifts[0] / drifts[1] == pytest.approx(4.0, rel=1e-3)


def test_sparse_measuring_reports_what_it_did_not_see() -> None:
    records = measured(OPTIMIZERS["momentum"], steps=31, schedule=10)
    total = sum(value(records, f"share_{cause}/rescale") for cause in (*CAUSES, "unmeasured"))
    assert total == pytest.approx(1.0, abs=1e-9)
    assert abs(value(records, "share_unmeasured/rescale")) > 1e-4


def test_an_optimizer_without_learning_rate_has_drift_but_no_budget() -> None:
    class Halving(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.mul_(0.9)

    records = measured(Halving, steps=2)
    assert value(records, "drift/rescale") > 0
    closure = [r for r in records if r.name == "conservation/closure/rescale"][-1]
    assert closure.status == "not_applicable"
    assert "learning rate" in closure.note
