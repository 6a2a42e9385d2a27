"""Closed forms of charges beside the measured ones, in training that is really run."""

from typing import Any

import pytest
import torch

from eqtoolbox.record.record import Record
from tests.laws.test_budget import OPTIMIZERS, Net, measured, value

SGD = torch.optim.SGD
CLOSED = {
    "plain": lambda p: SGD(p, lr=0.1),
    "decay": lambda p: SGD(p, lr=0.1, weight_decay=0.05),
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "momentum and decay": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.05),
}
FAMILIES = ("rescale", "gain_rescale", "translation")


def errors(records: list[Record], family: str) -> list[float]:
    """Errors of the forecast over their floors."""
    return [r.value / r.floor for r in records if r.name == f"conservation/forecast_error/{family}"]


@pytest.mark.parametrize("name", CLOSED)
def test_charges_follow_the_closed_form_of_sgd_to_rounding(name: str) -> None:
    records = measured(CLOSED[name], steps=40)
    for family in FAMILIES:
        assert len(errors(records, family)) > 30
        assert max(errors(records, family)) < 3
    if name != "plain":  # the charges did move
        assert value(records, "forecast/rescale") > 1e-3
    approximate = value(records, "forecast_error/scale")  # by the epsilon of the normalisation
    assert approximate < 1e-3


@pytest.mark.parametrize("name", ["decay", "momentum and decay"])
def test_a_learning_rate_that_changes_and_a_skipped_step_are_followed(name: str) -> None:
    optimizers: list[torch.optim.Optimizer] = []

    def make(p: Any) -> torch.optim.Optimizer:
        optimizers.append(CLOSED[name](p))
        return optimizers[0]

    def between(model: Net, step: int) -> None:
        optimizers[0].param_groups[0]["lr"] = 0.1 / (1 + step)

    records = measured(make, steps=20, between=between)
    for family in FAMILIES:
        assert max(errors(records, family)) < 3


def test_a_gradient_that_breaks_the_symmetry_leaves_the_closed_form() -> None:
    def between(model: Net, step: int) -> None:
        assert model.third.weight.grad is not None
        model.third.weight.grad += 1e-3 * model.third.weight.detach()

    records = measured(CLOSED["momentum and decay"], steps=20, between=between)
    assert errors(records, "rescale")[-1] > 100
    assert errors(records, "translation")[-1] > 100


def test_steps_that_were_not_measured_begin_the_forecast_anew() -> None:
    records = measured(
        CLOSED["momentum and decay"], steps=12, schedule=lambda step: step not in (5,)
    )
    notes = [r.note for r in records if r.name == "conservation/forecast/rescale"]
    assert "since step 0" in notes[0]
    assert "since step 6" in notes[-1]
    assert max(errors(records, "rescale")) < 3


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (OPTIMIZERS["adamw"], "AdamW: the closed forms are those of SGD"),
        (OPTIMIZERS["nesterov with decay"], "Nesterov"),
        (OPTIMIZERS["maximising"], "maximize"),
        (lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.5), "dampening"),
    ],
    ids=["adamw", "nesterov", "maximising", "dampening"],
)
def test_other_optimizers_are_not_applicable_with_the_reason_said_once(make: Any, why: str) -> None:
    records = [r for r in measured(make, steps=5) if "/forecast" in r.name]
    assert {r.status for r in records} == {"not_applicable"}
    assert all(why in r.note for r in records)
    assert len(records) == len({r.name for r in records})


def test_parameters_that_learn_at_different_rates_have_no_closed_form() -> None:
    def make(model: Net) -> torch.optim.Optimizer:
        rest = [p for n, p in model.named_parameters() if not n.startswith("third")]
        groups = [{"params": rest}, {"params": model.third.parameters(), "lr": 0.01}]
        return SGD(groups, lr=0.1)

    records = measured(make, steps=3, named=True)
    told = [r for r in records if r.name == "conservation/forecast_error/rescale"]
    assert [r.status for r in told] == ["not_applicable"]
    assert "different rates" in told[0].note
    assert max(errors(records, "gain_rescale")) < 3


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_the_angular_update_is_the_angle_between_weights_before_and_after(name: str) -> None:
    found: list[float] = []
    before: list[torch.Tensor] = []
    rows = lambda model: (
        torch.cat([model.first.weight, model.first.bias[:, None]], 1).detach().double()
    )

    def between(model: Net, step: int) -> None:
        before[:] = [rows(model).clone()]

    def after(model: Net, step: int) -> None:
        one, two = before[0], rows(model)
        cosine = (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1))
        found.append(float(torch.acos(cosine).median()))

    records = measured(OPTIMIZERS[name], steps=5, between=between, after=after)
    recorded = [r.value for r in records if r.name == "conservation/angular_update/scale"]
    assert recorded == pytest.approx(found, rel=1e-3)
