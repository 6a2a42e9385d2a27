"""Whether units merge is told in the metric of the optimizer that moves them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.probes.discrete import Discrete
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink
from tests.probes.test_discrete import RESIDUAL, Two, of, squared

WIDE, NARROW = 0.5, 0.2  # P of first and second layer
SIZE = 1e-5


def settled(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """AdamW whose metric was made by a long past that the units shared."""
    options = {"lr": 1e-3, "betas": (0.0, 1 - 1e-9), "eps": 1e-12} | options
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    for parameter, p in zip(model.parameters(), (WIDE, NARROW), strict=True):
        optimizer.state[parameter] = {
            "step": torch.tensor(1e12),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.full_like(parameter, p**2),
        }
    return optimizer


def watched(
    make: Callable[[nn.Module], torch.optim.Optimizer], steps: int
) -> tuple[Two, list[Record]]:
    model, sink = Two(0.0), MemorySink()
    with torch.no_grad():  # along the eigenvector P^-1/2 (1, 1)
        model.w.weight += SIZE * WIDE**-0.5 * torch.tensor([[1.0], [-1.0]])
        model.a.weight += SIZE * NARROW**-0.5 * torch.tensor([[1.0, -1.0]])
    optimizer = make(model)
    batch = torch.ones(1, 1).double(), torch.full((1, 1), 0.8 - RESIDUAL).double()
    with eq.attach(
        model, optimizer, probes=[Discrete(laws=False)], schedule=1, budget=None, sinks=[sink],
        on_error="raise",
    ) as monitor:  # fmt: skip
        loss = monitor.loss(squared)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    return model, sink.records


@pytest.mark.parametrize("decay", [0.5, 1.5])
def test_units_merge_or_part_as_the_margin_in_the_metric_of_adamw_says(decay: float) -> None:
    """At a decay of 0.5 the curvature of H alone, -0.3, would say that they merge."""
    model, records = watched(lambda m: settled(m, weight_decay=decay), steps=10)
    bend = -abs(RESIDUAL) / (WIDE * NARROW) ** 0.5
    margin = of(records, "margin/1")
    assert margin.value == pytest.approx(decay + bend, abs=1e-5)
    assert of(records, "normal_curvature/1").value == pytest.approx(bend, abs=1e-5)
    assert "in the metric of AdamW" in margin.note
    assert of(records, "shrinking/1").value == pytest.approx(1e-3 * margin.value, rel=2e-3)
    apart = (model.w.weight[0] - model.w.weight[1]).item() / (2 * SIZE * WIDE**-0.5)
    assert (apart < 1) == (margin.value > 0) == (decay == 1.5)


def test_decay_within_the_gradient_of_adam_is_felt_in_its_metric() -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        old = settled(model)
        new = torch.optim.Adam(
            model.parameters(), lr=1e-3, betas=(0.0, 1 - 1e-9), eps=1e-12, weight_decay=0.5
        )
        new.state.update(old.state)
        return new

    _, records = watched(make, steps=1)
    matrix = torch.tensor([[0.5, RESIDUAL], [RESIDUAL, 0.5]], dtype=torch.float64)
    root = torch.diag(torch.tensor([WIDE**-0.5, NARROW**-0.5], dtype=torch.float64))
    expected = float(torch.linalg.eigvalsh(root @ matrix @ root)[0])
    assert of(records, "margin/1").value == pytest.approx(expected, abs=1e-5)


def test_a_metric_that_follows_the_units_says_nothing_of_their_fate() -> None:
    """Young Adam divides every gradient by itself: both units step alike whatever H is."""
    model, records = watched(lambda m: torch.optim.Adam(m.parameters(), lr=1e-3), steps=5)
    margin = of(records, "margin/1", 4)
    assert margin.status == "not_applicable"
    assert "follows the units' own gradients" in margin.note
    apart = (model.w.weight[0] - model.w.weight[1]).item() / (2 * SIZE * WIDE**-0.5)
    assert apart == pytest.approx(1, abs=1e-4)  # H would have it grow by 1e-3 |r| / P a step
    assert of(records, "normal_curvature/1", 4).status == "ok"


def test_an_optimizer_of_unknown_metric_has_no_margin() -> None:
    _, records = watched(lambda m: torch.optim.Rprop(m.parameters(), lr=1e-4), steps=1)
    margin = of(records, "margin/1")
    assert margin.status == "not_applicable"
    assert "Rprop" in margin.note
    bend = of(records, "normal_curvature/1")
    assert bend.value == pytest.approx(-abs(RESIDUAL), abs=1e-6)
    assert "merge above" not in bend.note
