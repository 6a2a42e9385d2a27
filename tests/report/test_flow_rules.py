"""Findings on epsilon, on closed forms of charges and on angular updates."""

from dataclasses import replace

import pytest

from eqtoolbox.record.record import Record
from tests.report.test_findings import MakeRun, about, series, the


def approximate(left: float) -> list[Record]:
    rows = series("noether/slope/scale", [2e-4] * 6)
    rows += series("noether/predicted_slope/scale", [2e-4 - left] * 6)
    rows += series("noether/first_order/scale", [2e-4] * 6, floor=2e-4, verdict="holds")
    return rows + series("noether/epsilon/scale", [left] * 6, floor=1e-7)


def test_a_law_that_only_epsilon_breaks_is_good_news(make_run: MakeRun) -> None:
    run = make_run(approximate(1e-7))
    finding = the(run, "holds but for the epsilon")
    assert finding.level == "good"
    assert "slope 2e-4 of the gradient's length measured, 2e-4 predicted" in finding.text
    assert about(run, "hold to rounding") == about(run, "holds to rounding") == []


def test_a_law_that_epsilon_does_not_explain_is_broken(make_run: MakeRun) -> None:
    finding = the(make_run(approximate(1e-4)), "broken since the start by more than the epsilon")
    assert finding.level == "note"
    assert "1e-4 is left (floor 1e-7)" in finding.text


def test_between_the_two_it_is_undecided(make_run: MakeRun) -> None:
    assert the(make_run(approximate(5e-7)), "undecided").level == "note"


def test_order_0_is_part_of_what_is_said_of_a_law(make_run: MakeRun) -> None:
    run = make_run(
        series("noether/zeroth_order/rescale", [0.1] * 6, floor=1e-7, verdict="violated"),
        series("noether/first_order/rescale", [1e-8] * 6, floor=1e-7, verdict="holds"),
    )
    assert "zeroth-order residual 0.1" in the(run, "rescale law is broken").text


def drifting(expected: float, error: float) -> list[Record]:
    rows = series("conservation/forecast/rescale", [expected] * 4)
    return rows + series("conservation/forecast_error/rescale", [error] * 4, floor=1e-7)


def test_charges_that_follow_the_closed_form_say_so(make_run: MakeRun) -> None:
    finding = the(make_run(drifting(0.12, 2e-6)), "as the closed form of SGD")
    assert finding.level == "good"
    assert "rescale 12 %" in finding.text


def test_charges_that_leave_the_closed_form_say_by_how_much(make_run: MakeRun) -> None:
    finding = the(make_run(drifting(0.12, 0.05)), "left the closed form")
    assert finding.level == "note"
    assert "predicted drift 12 %, off by 5 %" in finding.text


def test_what_epsilon_adds_to_a_drift_is_allowed_for(make_run: MakeRun) -> None:
    rows = drifting(0.12, 0.005)
    told = [replace(r, note="measured 1.2e-1 since step 0; approximate symmetry") for r in rows]
    assert the(make_run(told), "as the closed form of SGD").level == "good"
    assert the(make_run(rows), "left the closed form").level == "note"


def test_a_drift_that_is_hardly_there_is_not_worth_a_word(make_run: MakeRun) -> None:
    assert about(make_run(drifting(1e-6, 1e-8)), "closed form") == []


@pytest.mark.parametrize(
    ("ratio", "words"), [(0.9, "is 0.9x its equilibrium"), (1.01, "is its eq")]
)
def test_the_angular_update_is_told_over_its_equilibrium(
    make_run: MakeRun, ratio: float, words: str
) -> None:
    rows = series("conservation/angular_update/scale", [ratio * 2e-3] * 5)
    rows += series("conservation/equilibrium_angle/scale", [2e-3] * 5)
    assert words in the(make_run(rows), "angular update").text


def test_without_an_equilibrium_the_angular_update_is_not_judged(make_run: MakeRun) -> None:
    rows = series("conservation/angular_update/scale", [2e-3] * 5)
    assert about(make_run(rows), "angular") == []
