"""Findings: true sentences with their evidence, and silence where nothing is certified."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eqtoolbox.record.facts import Facts
from eqtoolbox.record.record import Record, Status, Verdict
from eqtoolbox.report import Finding, Run
from tests.report.runs import STALE, UNCERTAIN, missing, series

MakeRun = Callable[..., Run]
ERROR = "equivariance/relative_error/cyclic4"
STABILITY, SHARPNESS = "curvature/stability", "curvature/sharpness"
MOMENTUM = {"class": "SGD", "groups": [{"lr": 0.05, "weight_decay": 0.0, "momentum": 0.9}]}


def about(run: Run, words: str) -> list[Finding]:
    """Findings whose sentence contains these words, whatever the case."""
    return [f for f in run.findings() if words.lower() in f.text.lower()]


def the(run: Run, words: str) -> Finding:
    found = about(run, words)
    assert len(found) == 1, [f.text for f in run.findings()]
    return found[0]


def test_the_gravest_finding_comes_first(make_run: MakeRun) -> None:
    run = make_run(
        series("monitor/closure_grad_cos", [0.87]),
        series(ERROR, [0.4], floor=1e-7, verdict="violated"),
        series(STABILITY, [0.3]),
        series("curvature/smallest", [-1.0]),
    )
    levels = [f.level for f in run.findings()]
    gravity = ["alarm", "warning", "note", "good"]
    assert levels == sorted(levels, key=gravity.index)
    assert set(levels) == set(gravity)
    assert "not the training loss" in run.findings()[0].text


def test_every_number_in_the_evidence_is_in_the_records(rich_run: Path) -> None:
    run = Run(rich_run)
    evidence = [e for f in run.findings() for e in f.evidence]
    assert len(evidence) > 20
    for e in evidence:
        steps, values = run.series(e.name, include_missing=math.isnan(e.value))
        assert e.step in steps
        if not math.isnan(e.value):
            assert e.value == pytest.approx(np.median(values[steps <= e.step][-e.points :]))


def test_uncertified_and_stale_values_are_in_no_finding(rich_run: Path) -> None:
    for finding in Run(rich_run).findings():
        assert not {UNCERTAIN, STALE} & {e.value for e in finding.evidence}
        assert "987" not in finding.text


# equivariance


def test_a_violation_is_told_with_its_growth_and_price(make_run: MakeRun) -> None:
    values = np.linspace(0.05, 0.41, 30)
    price = series("equivariance/percent_of_loss/cyclic4", [12.0] * 30, unit="%")
    run = make_run(series(ERROR, values, floor=2.1e-7, verdict="violated"), price)
    finding = the(run, "quarter turns is violated")
    assert finding.level == "warning"
    for part in (
        "relative error 0.39",
        "floor 2.1e-7",
        "grew 5.1x",
        "makes 12 % of the loss on moved samples",
    ):
        assert part in finding.text
    assert {e.name for e in finding.evidence} == {ERROR, price[0].name}


def test_a_price_in_parts_of_one_reads_the_same(make_run: MakeRun) -> None:
    price = series("equivariance/percent_of_loss/cyclic4", [0.12] * 5)
    run = make_run(series(ERROR, [0.4] * 5, floor=1e-7, verdict="violated"), price)
    assert "makes 12 % of the loss on moved samples" in the(run, "violated").text


def test_the_layer_to_blame_is_named_where_it_was_located(make_run: MakeRun) -> None:
    note = "alarm: 4.0 times its smallest; first broken at conv1: the kernel is not symmetric"
    blamed = series(ERROR, [0.4] * 5, floor=1e-7, verdict="violated", note=note)
    text = the(make_run(blamed), "violated").text
    assert text.endswith(". First broken at conv1: the kernel is not symmetric.")
    assert "First" not in the(make_run(series(ERROR, [0.4] * 5, verdict="violated")), "viol").text


def test_a_cheap_violation_is_only_a_note(make_run: MakeRun) -> None:
    price = series("equivariance/percent_of_loss/cyclic4", [0.3] * 5, unit="%")
    run = make_run(series(ERROR, [0.4] * 5, floor=1e-7, verdict="violated"), price)
    assert the(run, "violated").level == "note"


def test_a_symmetry_that_broke_is_told_since_when(make_run: MakeRun) -> None:
    early = series(ERROR, [1e-7] * 10, floor=1e-7, verdict="holds")
    late = [
        Record(step=s, name=ERROR, value=0.1, floor=1e-7, verdict="violated")
        for s in range(100, 200, 10)
    ]
    finding = the(make_run(early, late), "violated")
    assert "since step 100 (it held at the start)" in finding.text


@pytest.mark.parametrize("verdict", ["violated", "unresolved", "holds", None])
@pytest.mark.parametrize("name", [ERROR, "noether/second_order/scale", "noether/first_order/scale"])
def test_a_value_below_its_floor_is_never_called_a_violation(
    make_run: MakeRun, name: str, verdict: str | None
) -> None:
    run = make_run(series(name, [0.4, 0.5, 0.3], floor=0.6, verdict=verdict))
    assert run.findings()
    for finding in run.findings():
        assert finding.level == ("note" if verdict == "unresolved" else "good"), finding
        assert "violated" not in finding.text
        assert "broken" not in finding.text


def test_one_outlier_is_outvoted(make_run: MakeRun) -> None:
    rows = series(ERROR, [1e-7] * 9, floor=1e-7, verdict="holds")
    rows.append(Record(step=90, name=ERROR, value=0.5, floor=1e-7, verdict="violated"))
    assert the(make_run(rows), "quarter turns").level == "good"


def test_between_the_floors_nothing_is_claimed(make_run: MakeRun) -> None:
    run = make_run(series(ERROR, [5e-7] * 5, floor=1e-7, verdict="unresolved"))
    finding = the(run, "undecided")
    assert finding.level == "note"
    assert "float64" in finding.text
    wide = make_run(series(ERROR, [5e-16] * 5, floor=1e-16, verdict="unresolved"), dtype="float64")
    assert "rerun" not in the(wide, "undecided").text


def test_verdicts_that_disagree_decide_nothing(make_run: MakeRun) -> None:
    verdicts: list[Verdict] = ["holds", "violated", "holds", "violated", "unresolved"]
    rows = [
        Record(step=i, name=ERROR, value=1e-6, floor=2e-7, verdict=v)
        for i, v in enumerate(verdicts)
    ]
    assert the(make_run(rows), "undecided").level == "note"


def test_without_a_floor_there_is_no_verdict(make_run: MakeRun) -> None:
    finding = the(make_run(series(ERROR, [0.4] * 5)), "quarter turns")
    assert finding.level == "note"
    assert "no noise floor was measured" in finding.text


def test_what_is_not_applicable_is_no_finding(make_run: MakeRun) -> None:
    assert make_run(missing(ERROR, [0, 10], "not_applicable", "no images")).findings() == []


# laws of parameter symmetries


def test_a_law_that_holds_is_good_news_with_its_floor(make_run: MakeRun) -> None:
    run = make_run(
        series("noether/second_order/translation", [3e-4] * 4, floor=1e-3, verdict="holds")
    )
    finding = the(run, "translation law holds")
    assert finding.level == "good"
    assert "second-order residual 3e-4 (floor 0.001)" in finding.text


def test_a_broken_second_order_outweighs_a_first_order_that_holds(make_run: MakeRun) -> None:
    run = make_run(
        series("noether/first_order/rescale", [1e-8] * 6, floor=1e-7, verdict="holds"),
        series("noether/second_order/rescale", [0.3] * 6, floor=1e-7, verdict="violated"),
    )
    finding = the(run, "rescale law is broken since the start")
    assert finding.level == "note"
    assert "second-order residual 0.3" in finding.text


def held(*families: str) -> list[Record]:
    return [
        row
        for i, family in enumerate(families)
        for row in series(f"noether/first_order/{family}", [(i + 1) * 1e-8] * 4, floor=1e-7)
    ]


def test_many_laws_that_hold_share_a_sentence_with_the_worst_residual(make_run: MakeRun) -> None:
    run = make_run(held("head_scale", "rescale", "scale"))
    finding = the(run, "laws of head scale, rescale and scale hold to rounding")
    assert finding.level == "good"
    assert "first-order residual at most 3e-8 (floor 1e-7)" in finding.text
    assert len(about(make_run(held("rescale", "scale")), "law holds")) == 2


def test_a_law_that_breaks_is_never_lost_among_those_that_hold(make_run: MakeRun) -> None:
    broken = series("noether/first_order/rope", [0.2] * 4, floor=1e-7, verdict="violated")
    run = make_run(held("head_scale", "rescale", "scale"), broken)
    assert the(run, "rope law is broken").level == "note"
    assert "rope" not in the(run, "hold to rounding").text


def rayleigh(measured: float, predicted: float, floor: float | None = None) -> list[Record]:
    return [
        *series("noether/rayleigh/rescale", [measured], floor=floor),
        *series("noether/predicted_rayleigh/rescale", [predicted], floor=floor),
    ]


def test_a_predicted_curvature_that_is_measured_is_told(make_run: MakeRun) -> None:
    finding = the(make_run(rayleigh(-9.51e-2, -9.5e-2)), "predicted by the gradient alone")
    assert finding.level == "good"
    assert "predicted -0.095, measured -0.0951" in finding.text


def test_a_wrong_prediction_is_a_warning(make_run: MakeRun) -> None:
    finding = the(make_run(rayleigh(-0.2, -0.095, floor=1e-6)), "not what the gradient predicts")
    assert finding.level == "warning"


@pytest.mark.parametrize(("measured", "predicted"), [(3e-7, -2e-7), (0.0, 0.0), (1e-6, 0.0)])
def test_rounding_is_no_curvature(make_run: MakeRun, measured: float, predicted: float) -> None:
    run = make_run(rayleigh(measured, predicted, floor=2e-6))
    assert the(run, "zero within its error").level == "good"


def test_a_coarse_measurement_does_not_confirm_a_prediction(make_run: MakeRun) -> None:
    finding = the(make_run(rayleigh(-0.2, -0.095, floor=0.15)), "within its error")
    assert finding.level == "note"


# conservation


def drifting(family: str, drift: float, **shares: float) -> list[Record]:
    rows = [Record(step=100, name=f"conservation/drift/{family}", value=drift)]
    return rows + [
        Record(step=100, name=f"conservation/share_{cause}/{family}", value=share)
        for cause, share in shares.items()
    ]


def test_a_drift_that_is_all_weight_decay_says_so(make_run: MakeRun) -> None:
    run = make_run(drifting("rescale", 0.031, decay=1.0, finite_step=0.0, unmeasured=0.0))
    finding = the(run, "rescale charges drifted")
    assert finding.text == "Rescale charges drifted 3.1 % since the start: 100 % weight decay."
    assert finding.level == "note"


@pytest.mark.parametrize(("until", "told"), [(97, True), (50, False)])
def test_causes_recorded_shortly_before_the_end_are_told(
    make_run: MakeRun, until: int, told: bool
) -> None:
    rows = drifting("rescale", 0.031, decay=1.0, finite_step=0.0, unmeasured=0.0)
    last = max(r.step for r in rows)
    later = [replace(r, step=r.step - last + 100) for r in rows]
    kept = [r for r in later if "share" not in r.name or r.step <= until]
    early = [replace(r, step=until) for r in later if "share" in r.name and r.step == 100]
    text = the(make_run([*kept, *early]), "rescale charges drifted").text
    assert ("100 % weight decay" in text) == told


def test_causes_are_told_largest_first(make_run: MakeRun) -> None:
    run = make_run(drifting("rescale", 0.031, finite_step=0.08, decay=0.92))
    assert "3.1 % since the start: 92 % weight decay, 8 % finite step." in the(run, "charges").text


@pytest.mark.parametrize(("share", "told"), [(0.04, False), (0.06, True), (-0.2, True)])
def test_the_unmeasured_share_is_told_when_it_matters(
    make_run: MakeRun, share: float, told: bool
) -> None:
    run = make_run(drifting("scale", 0.1, decay=1 - share, unmeasured=share))
    assert ("unmeasured" in the(run, "charges").text) == told


def test_a_mostly_unmeasured_drift_asks_for_more_measurements(make_run: MakeRun) -> None:
    run = make_run(drifting("scale", 0.1, decay=0.3, unmeasured=0.7))
    assert "measure more often" in the(run, "charges").text


@pytest.mark.parametrize(("share", "given"), [(0.25, True), (0.31, False), (-0.6, False)])
def test_shares_are_no_percentages_where_most_of_the_drift_was_not_measured(
    make_run: MakeRun, share: float, given: bool
) -> None:
    run = make_run(drifting("scale", 0.1, decay=0.9 - share, finite_step=0.1, unmeasured=share))
    _, _, causes = the(run, "charges").text.partition("since the start")
    assert ("%" in causes) == given
    assert "weight decay" in causes
    assert ("measure more often" in causes) != given


def test_a_cause_against_the_drift_is_marked(make_run: MakeRun) -> None:
    run = make_run(drifting("scale", 0.1, finite_step=1.3, decay=-0.3))
    assert "130 % finite step, -30 % weight decay (negative: against" in the(run, "charges").text


def test_causes_that_nearly_cancel_are_told_in_words(make_run: MakeRun) -> None:
    run = make_run(drifting("scale", 0.02, finite_step=12.1, decay=-11.1, optimizer=0.002))
    text = the(run, "charges").text
    assert text == (
        "Scale charges drifted 2 % since the start: finite step +12.1x and weight decay -11.1x "
        "of this net drift nearly cancel."
    )
    shared = the(make_run(drifting("scale", 0.02, decay=2.9, finite_step=-1.9)), "charges").text
    assert "290 % weight decay" in shared, "up to three times the drift a share can be read"
    alone = drifting("scale", 0.02, decay=3.5, finite_step=-0.9, optimizer=-0.8, symmetry=-0.8)
    assert "weight decay +3.5x of this net drift, nearly cancelled by the other" in (
        the(make_run(alone), "charges").text
    )


def test_a_charge_that_was_born_at_zero_is_no_outlier(make_run: MakeRun) -> None:
    worst = Record(step=100, name="conservation/worst_drift/translation", value=-0.999, note="key")
    run = make_run(drifting("translation", 0.1, decay=1.0), [worst])
    assert "worst" not in the(run, "charges").text


def test_a_broken_symmetry_among_the_causes_is_named_and_no_warning(make_run: MakeRun) -> None:
    finding = the(make_run(drifting("scale", 0.1, symmetry=0.4, decay=0.6)), "drifted")
    assert finding.level == "note" and "40 % broken symmetry" in finding.text


@pytest.mark.parametrize(("slope", "broken"), [(1e-8, False), (1e-3, True)])
def test_what_rounding_moves_while_the_law_holds_is_no_broken_symmetry(
    make_run: MakeRun, slope: float, broken: bool
) -> None:
    law = Record(step=100, name="conservation/first_order/scale", value=slope, floor=1e-7)
    finding = the(make_run(drifting("scale", 0.1, symmetry=1.0), [law]), "drifted")
    assert ("broken symmetry" in finding.text) == broken


@pytest.mark.parametrize(("dtype", "conserved"), [("float32", True), ("float64", False)])
def test_a_drift_of_the_size_of_rounding_is_none(
    make_run: MakeRun, dtype: str, conserved: bool
) -> None:
    run = make_run(drifting("translation", 1e-6, decay=1.0), dtype=dtype)
    finding = the(run, "translation charges")
    assert ("are conserved" in finding.text) == conserved
    assert ("drifted" in finding.text) != conserved


def test_the_fastest_unit_is_named(make_run: MakeRun) -> None:
    worst = Record(step=100, name="conservation/worst_drift/scale", value=0.9, note="conv1, unit 5")
    run = make_run(drifting("scale", 0.1, decay=1.0), [worst])
    assert "the worst one by 90 % in conv1, unit 5" in the(run, "charges").text


def test_an_equivariance_is_moved_by_its_implicit_bias_and_that_is_no_warning(
    make_run: MakeRun,
) -> None:
    finding = the(make_run(drifting("head_scale", 0.2, implicit_bias=0.9, decay=0.1)), "drifted")
    assert finding.level == "note"
    assert finding.text == (
        "Head scale charges drifted 20 % since the start: 90 % implicit bias, 10 % weight decay."
    )


def test_a_gradient_that_obeys_a_law_at_every_step_is_good(make_run: MakeRun) -> None:
    rows = series("conservation/first_order/gain_rescale", [2e-8] * 12, floor=1e-7)
    finding = the(make_run(rows), "obeys the gain rescale law")
    assert finding.level == "good"
    assert "at 12 of 12 steps: slope 2e-8 of the gradient's length (floor 1e-7)" in finding.text


def test_a_gradient_that_breaks_a_law_is_dated(make_run: MakeRun) -> None:
    values = [1e-8] * 6 + [1e-3] * 6
    finding = the(
        make_run(series("conservation/first_order/rescale", values, floor=1e-7)), "breaks"
    )
    assert finding.level == "note"
    assert "breaks the rescale law since step 60" in finding.text


def balanced(ratio: float) -> list[Record]:
    rows = series("conservation/equilibrium/scale", [ratio] * 6)
    rows += series("conservation/equilibrium_steps/scale", [2300.0] * 6)
    return rows + series("conservation/effective_lr/scale", [0.05] * 6)


def test_weights_on_the_way_to_their_equilibrium_say_how_far_it_is(make_run: MakeRun) -> None:
    finding = the(make_run(balanced(1.8)), "equilibrium")
    assert "are 1.8x their equilibrium of decay and gradient, about 2300 steps" in finding.text
    assert "effective learning rate lr/|w|^2 is 0.05." in finding.text


def test_weights_at_their_equilibrium_have_no_steps_left(make_run: MakeRun) -> None:
    finding = the(make_run(balanced(1.01)), "equilibrium")
    assert "are at their equilibrium of decay and gradient; their" in finding.text


# curvature


def test_the_edge_of_stability_is_dated(make_run: MakeRun) -> None:
    values = [0.1 + 0.05 * i for i in range(17)] + [1.02, 0.99, 1.03] * 6
    run = make_run(series(STABILITY, values), series(SHARPNESS, values))
    finding = the(run, "edge of stability")
    assert finding.text.startswith("Sharpness × lr/2 = 1.02: at the edge of stability since step")
    assert finding.text.endswith("since step 160.")
    assert finding.level == "note"


def test_a_single_measurement_is_not_called_a_history(make_run: MakeRun) -> None:
    finding = the(make_run(series(STABILITY, [2.6]), series(SHARPNESS, [23.0])), "edge of")
    assert "beyond the edge of stability at step 0, the only measurement;" in finding.text


@pytest.mark.parametrize("status", ["not_converged", "failed", "skipped_budget", "non_finite"])
def test_an_uncertified_sharpness_never_speaks_of_stability(make_run: MakeRun, status: str) -> None:
    top = series(SHARPNESS, [40.0] * 20, status=status)
    for rows in (series(STABILITY, [1.0] * 20), series(STABILITY, [1.0] * 20, status=status)):
        assert about(make_run(top, rows), "stability") == []


def test_old_certified_stability_is_called_old(make_run: MakeRun) -> None:
    late = [
        Record(step=s, name=STABILITY, value=9.0, status="not_converged") for s in (50, 60, 70, 80)
    ]
    finding = the(make_run(series(STABILITY, [0.3] * 5), late), "below the edge")
    assert "last certified at step 40; 4 later attempts gave no number" in finding.text


def test_far_beyond_the_edge_is_a_warning(make_run: MakeRun) -> None:
    assert the(make_run(series(STABILITY, [1.6] * 6)), "beyond the edge").level == "warning"


def test_crossings_of_the_edge_are_not_hidden_by_the_median(make_run: MakeRun) -> None:
    finding = the(make_run(series(STABILITY, [0.5, 1.8, 0.6, 0.5, 0.6, 0.5])), "below the edge")
    assert finding.level == "note"
    assert "above 1 at 1 of 6 measurements, at most 1.8 at step 10" in finding.text


def test_a_calm_run_is_good_news(make_run: MakeRun) -> None:
    assert the(make_run(series(STABILITY, [0.3] * 6)), "below the edge").level == "good"


@pytest.mark.parametrize(
    ("optimizer", "words"), [(MOMENTUM, "2·momentum"), ({"class": "Lion"}, "threshold")]
)
def test_the_threshold_is_named_for_the_optimizer(
    make_run: MakeRun, optimizer: object, words: str
) -> None:
    run = make_run(series(STABILITY, [0.3] * 6), optimizer=optimizer)
    assert words in the(run, "below the edge").text


def test_alignment_is_told_against_chance(make_run: MakeRun) -> None:
    rows = [series(f"curvature/eigenvalue/{k}", [1.0]) for k in range(1, 6)]
    overlap = series("curvature/gradient_overlap", [0.78] * 3)
    run = make_run(*rows, overlap, model={"class": "Net", "parameters": 1000, "trainable": 1000})
    text = the(run, "gradient lives in").text
    assert "the top-5 curvature directions: 78 % of its energy" in text
    assert "a random vector has 0.5 %" in text


def test_low_overlap_lives_nowhere(make_run: MakeRun) -> None:
    run = make_run(series("curvature/update_overlap", [0.1] * 3))
    assert about(run, "lives in") == []
    assert "10 % of its energy" in the(run, "the update has").text


@pytest.mark.parametrize(("value", "resolved"), [(-0.3, True), (-0.01, False), (0.2, False)])
def test_negative_curvature_needs_more_than_its_error(
    make_run: MakeRun, value: float, resolved: bool
) -> None:
    run = make_run(series("curvature/smallest", [value] * 3, stderr=0.02))
    assert bool(about(run, "most negative curvature is -0.3")) == resolved
    assert bool(about(run, "No negative curvature is resolved")) != resolved


def test_an_overshooting_gradient_step_is_a_warning_for_plain_sgd_only(make_run: MakeRun) -> None:
    rows = [series("curvature/gradient_rayleigh", [50.0] * 3)]
    rows.append(series("training/learning_rate", [0.05] * 3))
    assert the(make_run(*rows), "overshoots").level == "warning"
    assert about(make_run(*rows, optimizer=MOMENTUM), "overshoots") == []
    calm = [series("curvature/gradient_rayleigh", [30.0] * 3), rows[1]]
    assert about(make_run(*calm), "overshoots") == []


# the run as a whole


@pytest.mark.parametrize("cosines", [[0.87], [1.0, 0.9, 0.9, 0.9]])
def test_another_loss_is_an_alarm_with_causes(make_run: MakeRun, cosines: list[float]) -> None:
    finding = make_run(series("monitor/closure_grad_cos", cosines)).findings()[0]
    assert finding.level == "alarm"
    assert "not the training loss (gradient cosine 0." in finding.text
    assert "gradient accumulation" in finding.text


def test_a_faithful_replay_is_good_news(make_run: MakeRun) -> None:
    run = make_run(series("monitor/closure_grad_cos", [0.9999999, 0.995]))
    assert the(run, "is the training loss").level == "good"


def test_one_bad_replay_among_many_is_a_warning(make_run: MakeRun) -> None:
    run = make_run(series("monitor/closure_grad_cos", [1.0, 0.5, 1.0, 1.0, 1.0]))
    finding = the(run, "left the training loss at 1 of 5 checks")
    assert finding.level == "warning"
    assert finding.evidence[0].step == 10


@pytest.mark.parametrize(("bad", "word"), [(math.nan, "NaN"), (math.inf, "infinite")])
@pytest.mark.parametrize("status", ["ok", "non_finite"])
def test_a_lost_loss_is_an_alarm(make_run: MakeRun, bad: float, word: str, status: Status) -> None:
    lost = [Record(step=s, name="training/loss", value=bad, status=status) for s in (200, 210)]
    run = make_run(series("training/loss", np.linspace(6, 2, 20)), lost)
    finding = the(run, f"training loss is {word} since step 200")
    assert "the last finite one was 2" in finding.text
    (alarm,) = [f for f in run.findings() if f.level == "alarm"]
    assert alarm.id == "not-finite" and alarm.step == 200
    assert about(run, "fell") == []


def test_a_loss_that_recovered_is_a_warning(make_run: MakeRun) -> None:
    run = make_run(series("training/loss", [2.0, math.nan, 1.5]))
    assert the(run, "it recovered").level == "warning"


def test_a_falling_loss_is_told_in_numbers(make_run: MakeRun) -> None:
    steps = np.arange(100)
    noise = np.random.default_rng(0).standard_normal(100)
    finding = the(make_run(series("training/loss", 2 * np.exp(-steps / 30) + 0.01 * noise)), "loss")
    assert finding.level == "good"
    assert "The training loss fell from" in finding.text


def test_scatter_alone_is_no_trend(make_run: MakeRun) -> None:
    calm = 0
    for seed in range(20):
        noise = np.random.default_rng(seed).standard_normal(100)
        finding = the(make_run(series("training/loss", 2 + 0.3 * noise)), "training loss")
        calm += "no fall beyond its own scatter" in finding.text
    assert calm >= 18  # three standard errors, two comparisons a run


def test_a_rising_loss_is_a_warning(make_run: MakeRun) -> None:
    values = np.concatenate([np.linspace(2, 0.5, 80), np.linspace(0.5, 3, 20)])
    run = make_run(series("training/loss", values))
    assert the(run, "loss is rising").level == "warning"


def between(losses: np.ndarray) -> list[Record]:
    """What each of the measured steps, every tenth, tells of the losses since the last one."""
    return [
        Record(
            step=10 * k,
            name="vital/losses",
            value=float(row[-1]),
            facts=Facts({"losses": tuple(map(float, row)), "first": max(0, 10 * k - 9)}),
        )
        for k, row in enumerate(losses)
    ]


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("count", [16, 20, 40])
def test_noise_hardly_ever_seems_to_rise(count: int, every: bool, make_run: MakeRun) -> None:
    rng = np.random.default_rng(0)
    for _ in range(25):
        noise = 2 + 0.3 * rng.standard_normal((count, 12))
        rows = between(noise) if every else []
        run = make_run(series("training/loss", noise[:, -1]), rows)
        assert about(run, "is rising") == []


def test_a_rise_is_seen_in_the_losses_between_few_measured_ones(make_run: MakeRun) -> None:
    level = np.array([2.0, *[1.0] * 12, *[1.6] * 3])
    losses = level[:, None] + 0.3 * np.random.default_rng(0).standard_normal((16, 12))
    run = make_run(series("training/loss", losses[:, -1]), between(losses))
    assert the(run, "loss is rising").id == "loss-rising"


@pytest.mark.parametrize(("fifth", "first"), [(-0.01, "see whether the batches"), (0.01, "lower")])
def test_a_loss_that_rises_though_each_step_lowers_its_batch_is_first_laid_to_the_data(
    fifth: float, first: str, make_run: MakeRun
) -> None:
    values = np.concatenate([np.linspace(2, 0.5, 80), np.linspace(0.5, 3, 20)])
    own = series("vital/own_batch", [*[-0.01] * 4, fifth] * 20)
    found = the(make_run(series("training/loss", values), own), "loss is rising")
    assert found.level == "warning" and found.remedy[0].startswith(first)
    assert ("though each step lowers" in found.text) is (fifth < 0)


def test_a_steep_fall_of_the_loss_is_no_scatter(make_run: MakeRun) -> None:
    values = [0.3 * 0.5**i if i < 8 else 4e-4 for i in range(40)]
    assert the(make_run(series("training/loss", values)), "training loss fell").level == "good"


def test_failures_are_counted_by_measurement_not_by_record(make_run: MakeRun) -> None:
    names = ("curvature/sharpness", "curvature/stability", "curvature/eigenvalue/1")
    rows = [missing(name, [10, 20], "not_converged", "residual 0.1") for name in names]
    text = the(make_run(*rows), "did not converge").text
    assert text.startswith("2 curvature measurements did not converge")
    assert "first at step 10: residual 0.1." in text


def test_skips_are_told_with_the_overhead(make_run: MakeRun) -> None:
    run = make_run(
        series("curvature/sharpness", [1.0] * 3),
        missing("curvature/sharpness", [30], "skipped_budget"),
        series("cost/overhead", [0.2, 0.049]),
    )
    finding = the(run, "skipped by the budget")
    assert finding.text.startswith("1 of 4 due measurements were skipped")
    assert "overhead 4.9 %, budget 5 %" in finding.text


def test_skips_without_a_row_are_counted_and_setup_is_told_apart(make_run: MakeRun) -> None:
    run = make_run(
        series("curvature/sharpness", [1.0] * 3),
        missing("curvature/sharpness", [30, 40], "skipped_budget"),
        series("cost/skipped/curvature", [1, 2, 7]),
        series("cost/overhead", [0.049]),
        series("cost/setup", [0.2, 1.26]),
    )
    text = the(run, "skipped by the budget").text
    assert text.startswith("7 of 10 due measurements were skipped")
    assert "overhead 4.9 %, budget 5 %, set-up of 1.3 s apart" in text


def test_an_overdrawn_budget_is_said(make_run: MakeRun) -> None:
    assert the(make_run(series("cost/overhead", [0.09])), "overdrew").level == "note"
    fine = the(make_run(series("cost/overhead", [0.049])), "of the training time")
    assert fine.level == "good"
    free = the(make_run(series("cost/overhead", [35.0]), budget=None), "no budget was set")
    assert free.level == "note"
    assert "cost 35x the training time" in free.text


def test_logged_errors_and_torn_lines_are_mentioned(make_run: MakeRun) -> None:
    events = [{"step": 7, "kind": "error", "probe": "training", "message": "boom\ntrace"}]
    run = make_run(series("training/loss", [1.0]), events=events, tail='{"st')
    assert the(run, "1 error in the event log").text.endswith("(step 7, training): boom")
    assert the(run, "1 line of the log").level == "note"


def test_found_symmetries_come_from_the_facts_or_the_records(make_run: MakeRun) -> None:
    loss = series("training/loss", [1.0])
    facts = [
        {"name": "a", "family": "scale", "dimension": 8, "status": "verified", "residual": 0.0},
        {"name": "b", "family": "scale", "dimension": 4, "status": "broken", "residual": 0.4},
    ]
    run = make_run(loss, symmetries=facts)
    assert "8 directions of parameter symmetry" in the(run, "scale (8)").text
    assert "b failed its check (residual 0.4)" in the(run, "proposed").text
    run = make_run(loss, series("noether/dimension/rescale", [40.0]), symmetries=[])
    assert "40 directions of parameter symmetry" in the(run, "rescale (40)").text


def test_a_run_that_could_measure_nothing_says_why(make_run: MakeRun) -> None:
    rows = [
        Record(
            step=0,
            name=f"{name}/x",
            value=math.nan,
            status="not_applicable",
            note="no loss: use @monitor.loss",
        )
        for name in ("curvature", "noether")
    ]
    finding = the(make_run(rows), "nothing was measured")
    assert (finding.level, "no loss: use" in finding.text) == ("warning", True)
    measured = make_run(rows, series("curvature/sharpness", [1.0]))
    assert not [f for f in measured.findings() if "Nothing" in f.text]


def test_skips_of_the_budget_are_no_failed_attempts(make_run: MakeRun) -> None:
    skipped = missing("curvature/sharpness", [30, 40, 50, 60], "skipped_budget")
    run = make_run(
        series("curvature/sharpness", [1.0]), series("curvature/stability", [0.5]), skipped
    )
    assert "attempts gave no number" not in the(run, "edge of stability").text
