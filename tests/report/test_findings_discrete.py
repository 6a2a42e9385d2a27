"""Findings about units and about orbit-free sharpness."""

from collections.abc import Callable

import pytest

from eqtoolbox.report import Run
from tests.report.runs import series
from tests.report.test_findings import about, the

MakeRun = Callable[..., Run]


def test_duplicate_and_dead_units_are_named(make_run: MakeRun) -> None:
    run = make_run(
        series("discrete/duplicates", [0, 1, 1, 1], note="2-4 units 2 and 5"),
        series("discrete/dead", [2, 2, 2, 2], note="0-2 unit 4 (never active); 0-2 unit 1 (zero)"),
    )
    assert "1 pair of units are duplicates" in the(run, "2-4 units 2 and 5").text
    finding = the(run, "0-2 unit 4 (never active)")
    assert finding.level == "warning"
    assert "2 units are dead" in finding.text


def test_a_unit_that_was_silent_once_is_not_called_dead(make_run: MakeRun) -> None:
    assert not about(make_run(series("discrete/dead", [0, 0, 0, 0, 1], note="0 unit 1")), "dead")
    assert not about(make_run(series("discrete/dead", [1, 1, 1, 1, 0])), "dead")


@pytest.mark.parametrize(
    ("distance", "margin", "words", "level"),
    [
        (0.02, 0.05, "about to merge", "warning"),
        (0.02, -0.05, "parting", "note"),
        (0.02, 1e-5, "neither grow nor shrink", "note"),
        (1e-9, 0.05, "are equal: all deviations shrink", "warning"),
        (1e-9, -0.05, "are equal: some deviations grow", "note"),
    ],
)
def test_the_sign_of_the_margin_decides_between_merging_and_parting(
    make_run: MakeRun, distance: float, margin: float, words: str, level: str
) -> None:
    label = "2-4 units 2 and 5"
    run = make_run(
        series("discrete/distance/permutation", [distance], note=label),
        series("discrete/nearest/1", [distance], note=label),
        series("discrete/margin/1", [margin], stderr=1e-4, note=label),
        series("discrete/normal_curvature/1", [margin - 0.1], stderr=1e-4, note=label),
    )
    finding = the(run, label)
    assert words in finding.text
    assert finding.level == level
    assert "against -0.1 of decay" in finding.text


def test_without_weight_decay_the_curvature_stands_against_nothing(make_run: MakeRun) -> None:
    label = "2-4 units 2 and 5"
    run = make_run(
        series("discrete/distance/permutation", [0.02], note=label),
        series("discrete/nearest/1", [0.02], note=label),
        series("discrete/margin/1", [-0.05], stderr=1e-4, note=label),
        series("discrete/normal_curvature/1", [-0.05], stderr=1e-4, note=label),
    )
    assert "(smallest curvature -0.05)" in the(run, label).text


def test_a_pair_that_is_no_longer_near_is_not_told(make_run: MakeRun) -> None:
    label = "2-4 units 2 and 5"
    run = make_run(
        series("discrete/distance/permutation", [0.1, 0.6], note=label),
        series("discrete/nearest/1", [0.1], note=label),
        series("discrete/margin/1", [0.5], note=label),
    )
    assert not about(run, label)


def test_small_odd_units_die_or_grow(make_run: MakeRun) -> None:
    label = "0-2 unit 3"
    rows = (
        series("discrete/nearest/1", [0.01], note=label),
        series("discrete/margin/1", [0.5], note=label),
    )
    assert "is near zero (0.01 of its layer): dying" in the(make_run(*rows), label).text


def test_orbit_free_sharpness_says_what_is_a_matter_of_scale(make_run: MakeRun) -> None:
    plain = series("curvature/sharpness", [100.0] * 3)
    run = make_run(plain, series("curvature/orbit_free_sharpness", [2.0] * 3))
    assert "a matter of scale" in the(run, "across the symmetry orbits").text
    run = make_run(plain, series("curvature/orbit_free_sharpness", [50.0] * 3))
    assert "a matter of scale" not in the(run, "across the symmetry orbits").text
