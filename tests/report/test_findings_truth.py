"""Sentences say no more than their numbers: when, how sure, and relative to what."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from eqtoolbox.record.facts import Facts
from eqtoolbox.record.record import Record
from eqtoolbox.report import Finding, Run
from tests.report.runs import missing, series

MakeRun = Callable[..., Run]
LAW = "conservation/first_order"


def the(run: Run, words: str) -> Finding:
    (found,) = [f for f in run.findings() if words in f.text]
    return found


def drift(value: float, **shares: float) -> list[Record]:
    rows = [Record(step=90, name="conservation/drift/head_shift", value=value)]
    return rows + [
        Record(step=90, name=f"conservation/share_{cause}/head_shift", value=share)
        for cause, share in shares.items()
    ]


def test_a_drift_that_sparse_steps_do_not_explain_is_no_cancellation(make_run: MakeRun) -> None:
    text = the(make_run(drift(0.1, implicit_bias=7.7, unmeasured=-6.7)), "charges drifted").text
    assert "cancel" not in text and "measure more often" in text
    text = the(make_run(drift(0.1, finite_step=7.7, decay=-6.7)), "charges drifted").text
    assert "nearly cancel" in text and "measure more often" not in text


def test_no_more_measuring_is_asked_for_where_the_budget_shows_another_mover(
    make_run: MakeRun,
) -> None:
    gap = series("conservation/closure/head_shift", [0.1] * 6, floor=1e-7, verdict="violated")
    run = make_run(drift(0.1, implicit_bias=0.0, unmeasured=1.0), gap)
    assert "100 % unmeasured" in the(run, "charges drifted").text
    assert "measure more often" not in the(run, "charges drifted").text


def test_the_largest_slope_of_all_steps_is_told(make_run: MakeRun) -> None:
    rows = []
    for family in ("rescale", "rope", "scale", "translation"):
        values = [1e-9] * 12
        values[3] = 5e-8 if family == "rope" else 1e-9
        rows += series(f"{LAW}/{family}", values, floor=1e-7, verdict="holds")
    finding = the(make_run(rows), "training gradient obeys")
    assert "at all 12 steps: slope at most 5e-8 of" in finding.text
    assert finding.evidence[0].value == 5e-8


@pytest.mark.parametrize(("recent", "told"), [(True, "drifted 18 % since"), (False, "± 2 %")])
def test_an_estimated_drift_is_told_exactly_or_with_its_error(
    make_run: MakeRun, recent: bool, told: str
) -> None:
    rows = [
        Record(step=i, name="conservation/drift/general_linear", value=0.13, stderr=0.02)
        for i in range(100)
    ]
    rows[98 if recent else 10] = Record(
        step=98 if recent else 10, name="conservation/drift/general_linear", value=0.18
    )
    assert told in the(make_run(rows), "charges drifted").text


def test_what_was_measured_once_is_dated(make_run: MakeRun) -> None:
    loss = series("training/loss", [1.0] * 30)
    once = [
        Record(step=0, name="curvature/stability", value=0.36),
        Record(step=0, name="curvature/sharpness", value=7.2),
    ]
    text = the(make_run(loss, once), "edge of stability").text
    assert text.startswith("Seen once, at step 0: ")
    assert text.endswith("below the edge of stability.")
    again = series("curvature/stability", [0.36] * 3), series("curvature/sharpness", [7.2] * 3)
    assert "once" not in the(make_run(loss, *again), "edge of stability").text


def test_what_is_no_longer_finite_is_dated(make_run: MakeRun) -> None:
    loss = series("training/loss", [1.0] * 100)
    charges = series("conservation/drift/translation", [1e-8] * 4, floor=1e-7)
    lost = missing("conservation/drift", [50, 90], "non_finite", "weight holds NaN or infinity")
    text = the(make_run(loss, charges, lost), "charges are conserved").text
    assert text.endswith(f"(up to step {charges[-1].step}; not finite from step 50 on).")


@pytest.mark.parametrize(
    "others",
    [
        missing("conservation/drift", [1], "non_finite"),  # and it was measured again
        missing("curvature/sharpness", [90], "non_finite"),  # another probe's numbers
        missing("conservation/drift", [90], "skipped_budget"),
    ],
    ids=["came back", "another probe", "skipped"],
)
def test_what_did_not_stop_being_finite_is_not_dated(make_run: MakeRun, others: Any) -> None:
    loss = series("training/loss", [1.0] * 100)
    charges = series("conservation/drift/translation", [1e-8] * 4, floor=1e-7)
    text = the(make_run(loss, charges, others), "charges are conserved").text
    assert "up to step" not in text


def test_charges_that_left_the_closed_form_are_not_laid_to_a_gradient_that_moved_none(
    make_run: MakeRun,
) -> None:
    rows = [
        Record(step=90, name="conservation/forecast/rescale", value=0.1, note="measured 0.5"),
        Record(step=90, name="conservation/forecast_error/rescale", value=0.4, floor=1e-6),
    ]
    share = Record(step=90, name="conservation/share_symmetry/rescale", value=1e-6)
    assert "something that is no step of SGD" in the(make_run([*rows, share]), "closed form").text
    share = Record(step=90, name="conservation/share_symmetry/rescale", value=0.8)
    assert "the gradient moves them" in the(make_run([*rows, share]), "closed form").text


def test_the_prediction_of_an_approximate_symmetrys_curvature_names_epsilon(
    make_run: MakeRun,
) -> None:
    rows = series("noether/rayleigh/scale", [0.01] * 6)
    rows += series("noether/predicted_rayleigh/scale", [0.01] * 6)
    assert "predicted by the gradient alone" in the(make_run(rows), "curvature along").text
    rows += series("noether/epsilon/scale", [1e-9] * 6, floor=1e-7)
    assert "by gradient and epsilon alone" in the(make_run(rows), "curvature along").text


def test_a_floor_that_was_too_large_to_tell_is_no_law_that_holds(make_run: MakeRun) -> None:
    rows = series(f"{LAW}/translation", [0.0018] * 12, floor=1.1, verdict="unresolved")
    assert not [f for f in make_run(rows).findings() if "obeys" in f.text]
    rows = series(f"{LAW}/translation", [0.0018] * 12, floor=0.01, verdict="holds")
    assert the(make_run(rows), "obeys the translation law at 12 of 12").level == "good"


@pytest.mark.parametrize(
    ("step", "told"), [(90, "drifted 10 % since step 40"), (40, "drifted 10 % in step 40")]
)
def test_a_drift_is_counted_from_where_it_began(make_run: MakeRun, step: int, told: str) -> None:
    """Not from the start of the run where parameters were unfrozen later."""
    facts = Facts({"begun": 40})
    row = Record(step=step, name="conservation/drift/rescale", value=0.1, facts=facts)
    assert told in the(make_run([row]), "charges drifted").text


def test_a_law_of_a_gradient_alone_is_not_held_against_the_loss(make_run: MakeRun) -> None:
    """As of a straight-through estimator: the loss keeps what its replaced derivative does not."""
    laws = [
        series(f"noether/{order}_order/homogeneity", [value] * 12, floor=2e-5, verdict=verdict)
        for order, value, verdict in (("zeroth", 1e-7, "holds"), ("first", 7e-4, "violated"))
    ]
    text = the(make_run(*laws), "homogeneity law is broken").text
    assert "a finite transformation leaves the loss as it is" in text and "lacks" not in text
    text = the(make_run(laws[1]), "homogeneity law is broken").text
    assert "the loss as trained lacks this symmetry" in text


def test_a_fall_within_the_first_fifth_is_no_scatter(make_run: MakeRun) -> None:
    first = [0.3 - 0.09 * i for i in range(14)]  # to -0.87
    rest = [-0.99 - 1e-4 * (i % 7) for i in range(56)]
    assert "loss fell" in the(make_run(series("training/loss", first + rest)), "training loss").text
    flat = [(-1) ** i * 0.2 + 0.001 * (i % 5) for i in range(70)]
    assert "no fall" in the(make_run(series("training/loss", flat)), "training loss").text


def test_a_loss_that_is_maximised_is_not_said_to_rise(make_run: MakeRun) -> None:
    rows = series("training/loss", [-1.0 + 0.9 * i / 99 for i in range(100)])
    groups = [{"lr": 0.5, "weight_decay": 0.0, "momentum": 0.0, "maximize": True}]
    run = make_run(rows, optimizer={"class": "SGD", "groups": groups})
    assert "maximises its loss" in the(run, "which went from -0.9").text
    assert not [f for f in run.findings() if f.level in ("warning", "alarm")]


def test_losses_of_both_signs_are_not_thrown_by_their_scatter(make_run: MakeRun) -> None:
    """Of policy gradients: the first are small by chance, none is larger than others."""
    values = [0.02 + 0.3 * ((7 * i) % 11 - 5) / 5 for i in range(300)]
    values[0] = 0.02
    rows = series("training/loss", values)
    assert not [f for f in make_run(rows).findings() if f.level == "alarm"]


@pytest.mark.parametrize(("first", "told"), [([0.9, 1.1, 4.0, 1.0, 6.0], False), ([1.0] * 5, True)])
def test_scatter_of_batches_is_no_rise_of_the_sharpness(
    make_run: MakeRun, first: list[float], told: bool
) -> None:
    values = [*first, *[2.0] * 5, 3.0, 0.95, 3.1, 5.0, 2.9]
    if told:
        values[-4] = 3.2
    rows = series("curvature/sharpness", values), series("curvature/stability", values)
    texts = " ".join(f.text for f in make_run(*rows).findings())
    assert ("The sharpness rose" in texts) == told
    low = [series(f"curvature/{n}", [v / 10 for v in values]) for n in ("sharpness", "stability")]
    texts = " ".join(f.text for f in make_run(*low).findings())
    assert ("at the start" in texts) == told


@pytest.mark.parametrize("odd", ["yes", [1], {}, 10**400])
def test_whether_a_loss_is_maximised_is_told_by_a_truth_value_alone(
    make_run: MakeRun, odd: Any
) -> None:
    """A run directory may come from anybody."""
    rows = series("training/loss", [1.0 - 0.9 * i / 99 for i in range(100)])
    groups = [{"lr": 0.5, "weight_decay": 0.0, "momentum": 0.0, "maximize": odd}]
    run = make_run(rows, optimizer={"class": "SGD", "groups": groups})
    assert "loss fell" in the(run, "training loss").text
    assert any("maximize" in event["message"] for event in run.events)


def test_a_reason_for_which_nothing_was_measured_is_told_once(make_run: MakeRun) -> None:
    facts = Facts({"why": "no loss is known", "remedy": "call monitor.observe(batch)"})
    row = Record(
        step=0, name="noether/second_order", value=math.nan, status="not_applicable", facts=facts
    )
    assert [f.text for f in make_run([row]).findings() if "no loss is known" in f.text] == [
        "Nothing was measured: no loss is known."
    ]
