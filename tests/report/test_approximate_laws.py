"""Findings on approximate symmetries: nothing is said to hold or to break that is undecided."""

from dataclasses import replace

import pytest

from eqtoolbox.probes.drift import WITHIN
from eqtoolbox.record.record import Record, Verdict
from tests.report.runs import series
from tests.report.test_findings import MakeRun, about, drifting, the

LAW = "conservation/first_order/scale"


def law(verdict: Verdict, note: str = "", value: float = 2e-3) -> list[Record]:
    """Within rounding at the start and at the end, of this verdict between."""
    rows = series(LAW, [value] * 9, floor=1e-7, verdict=verdict)
    small = [replace(rows[k], value=1e-8, verdict="holds") for k in (0, -1)]
    return [small[0], *(replace(r, note=note) for r in rows[1:-1]), small[1]]


def forecast(error: float) -> list[Record]:
    step = 100
    return [
        Record(step=step, name="conservation/forecast/scale", value=0.1, note="approximate"),
        Record(step=step, name="conservation/forecast_error/scale", value=error),
    ]


@pytest.mark.parametrize("ending", ["unresolved", "holds"])
def test_an_undecided_law_is_neither_obeyed_nor_broken(make_run: MakeRun, ending: str) -> None:
    rows = law("unresolved", f"{WITHIN} (1e-2)")
    rows = rows if ending == "unresolved" else [*rows, *series(LAW, [1e-8] * 6, floor=1e-7)]
    run = make_run([replace(r, step=10 * k) for k, r in enumerate(rows)])
    assert not about(run, "training gradient")
    assert about(make_run(law("violated")), "breaks the scale law")[0].level == "note"
    assert about(make_run(law("holds", value=1e-8)), "obeys the scale law")[0].level == "good"


def test_a_drift_under_an_undecided_law_is_no_broken_symmetry_and_no_held_one(
    make_run: MakeRun,
) -> None:
    moved = drifting("scale", 0.1, symmetry=0.85, decay=0.15)
    undecided = the(make_run(moved, law("unresolved", f"{WITHIN} (1e-2)")), "drifted")
    assert undecided.level == "note" and "85 % a slope that an epsilon may leave" in undecided.text
    broken = the(make_run(moved, law("violated")), "drifted")
    assert "85 % broken symmetry" in broken.text


def test_what_moves_charges_off_their_closed_form_says_no_more_than_the_law(
    make_run: MakeRun,
) -> None:
    moved = [*drifting("scale", 0.1, symmetry=0.85, decay=0.15), *forecast(0.05)]
    undecided = the(make_run(moved, law("unresolved", f"{WITHIN} (1e-2)")), "left the closed form")
    assert "no more than the epsilon of normalisations may leave" in undecided.text
    broken = the(make_run(moved, law("violated")), "left the closed form")
    assert "which it does not while the symmetry holds" in broken.text
