"""The top of the page: a verdict, five answers, three cards, findings by question, marked steps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eqtoolbox.record.record import Record
from eqtoolbox.report import Run
from eqtoolbox.report.finding import Evidence, Finding
from eqtoolbox.report.headline import answers, verdict
from eqtoolbox.report.marks import marks, spikes
from eqtoolbox.report.page import content
from eqtoolbox.report.placed import TRAINING, Places, cards, groups
from eqtoolbox.report.sections import sections
from eqtoolbox.report.topics.loss import training_panel
from tests.report.runs import series

MakeRun = Callable[..., Run]
FALL = [float(2.0 * 0.98**i + 0.02) for i in range(200)]


def places(run: Run) -> Places:
    return Places(sections(run), training_panel(run))


def warning(
    name: str, *, id: str = "", text: str = "Broken: by 3.", remedy: str = "mend"
) -> Finding:
    evidence = (Evidence(name=name, step=0, value=1.0),)
    return Finding(level="warning", text=text, id=id, evidence=evidence, remedy=(remedy,))


def test_a_verdict_says_whether_it_learned_and_counts_what_is_wrong(make_run: MakeRun) -> None:
    run = make_run(series("training/loss", FALL, every=1))
    assert verdict(run, run.findings()).startswith("It learned: the loss went from 1.9")
    assert verdict(run, run.findings()).endswith("No alarm and no warning.")
    two = [warning("training/loss"), warning("training/loss")]
    assert verdict(run, two).endswith(" 2 warnings; the first: broken.")


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([1.0 + 0.1 * (-1) ** i for i in range(40)], "It did not learn"),
        ([*FALL[:50], *[float("nan")] * 50], "It broke: loss or parameters are not finite from"),
        (FALL[:3], "Too few losses"),
        ([2.0 + i for i in range(40)], "It did not learn: the loss grew from"),
        (
            [2.0] * 40 + [0.5, 0.5, 90.0] * 40,
            "It did not learn: the loss went from 2 to 0.5 an",
        ),
    ],
)
def test_a_run_that_did_not_learn_is_not_said_to(
    make_run: MakeRun, losses: list[float], said: str
) -> None:
    run = make_run(series("training/loss", losses, every=1))
    assert verdict(run, run.findings()).startswith(said)
    told = {a["question"]: a["answer"] for a in answers(run, [], places(run))}
    assert told.get("Did it learn?", "No")[:2] == "No"
    assert ("at the end" in told.get("Did it learn?", "")) == said.startswith("It did not learn")


@pytest.mark.parametrize(
    ("id", "level", "said"),
    [
        ("weights-written-back", "warning", "Its loss says so, but broken. Loss 1.9"),
        ("collapsed-representation", "alarm", "Its loss says so, but broken. Loss 1.9"),
        ("weights-written-back", "note", "Yes. Loss 1.9"),
        ("overfit", "warning", "Yes. Loss 1.9"),  # which has learned
        ("", "warning", "Yes. Loss 1.9"),
    ],
)
def test_a_loss_that_fell_is_no_learning_where_a_disease_would_account_for_none(
    make_run: MakeRun, id: str, level: Any, said: str
) -> None:
    run = make_run(series("training/loss", FALL, every=1))
    found = [replace(warning("training/loss", id=id), level=level)]
    told = {a["question"]: a["answer"] for a in answers(run, found, places(run))}
    assert told["Did it learn?"].startswith(said)


def test_answers_tell_symmetries_charges_edge_and_what_to_do(rich_run: object) -> None:
    run = Run(str(rich_run))
    told = {a["question"]: a for a in answers(run, run.findings(), places(run))}
    assert told["Did it learn?"]["answer"].startswith("Yes. Loss 2.29")
    held = told["Which symmetries hold?"]
    assert (
        "Of the data, holding: flips; violated: quarter turns; undecided: translations."
        in (held["answer"])
    )
    assert held["link"] == "equivariance-relative_error"
    moved = told["What is conserved, and what broke it?"]
    assert moved["answer"].startswith(
        "Conserved to rounding: translation. Moved: scale by 21 % (fin"
    )
    assert moved["link"] == "conservation-drift"
    assert told["Was the learning rate at the edge?"]["answer"].startswith("Yes. Sharpness")
    assert told["Was the learning rate at the edge?"]["link"] == "stability"
    assert "augment" in told["What to do next?"]["answer"]


def test_the_edge_is_answered_before_it_is_explained(make_run: MakeRun) -> None:
    for levels, said in (
        ([0.1] * 9, "No. "),
        ([0.1, 1.8, 1.9, *[0.3] * 6], "Not at the end, but before. "),
        ([1.0] * 9, "Yes. "),
        ([3.0] * 9, "Beyond it. "),
    ):
        rows = series("curvature/stability", levels), series("curvature/sharpness", levels)
        run = make_run(*rows, info={})
        (told,) = [a for a in answers(run, run.findings(), places(run)) if "edge" in a["question"]]
        assert told["answer"].startswith(said), told


def test_the_words_of_the_answers_are_explained(rich_run: object) -> None:
    words = {word.pattern: word.meaning for word in content(Run(str(rich_run)))["words"]}
    assert words.keys() >= {"scale", "translation", "finite step", "edge of stability"}
    assert all(words.values()) and "hessian" not in words


def test_an_approximate_law_is_said_to_hold_but_for_epsilon(make_run: MakeRun) -> None:
    rows = series("noether/first_order/scale", [1e-4, 1e-4], floor=1e-7, verdict="violated")
    rows += series("noether/epsilon/scale", [1e-8, 1e-8], floor=1e-7, verdict="holds")
    run = make_run(rows)
    (told,) = answers(run, [], places(run))
    assert told["answer"] == "Of the weights, holding: scale (but for epsilon)."


def test_there_are_three_cards_at_most_and_each_leads_to_its_figure(make_run: MakeRun) -> None:
    names = [f"equivariance/relative_error/{n}" for n in ("flip", "cyclic4", "so2", "so3")]
    run = make_run(*(series(name, [0.1, 0.2]) for name in names), series("training/loss", FALL))
    apart = [warning(name, text=f"{name}.") for name in names]
    assert [card["text"] for card in cards(apart[:3], places(run))] == [f"{n}." for n in names[:3]]
    assert len(cards(apart, places(run))) == 3
    assert {card["link"] for card in cards(apart, places(run))} == {"equivariance-relative_error"}
    alike = [warning(name, id="broken", text=f"{name}.") for name in names]
    (first, other) = cards([*alike, warning("training/loss")], places(run))
    assert (first["text"], first["also"]) == (f"{names[0]}.", [f"{n}." for n in names[1:]])
    assert (other["link"], other["remedy"]) == ("loss", ("mend",))
    (bare,) = cards([Finding(level="alarm", text="All is lost.")], places(run))
    assert bare["link"] == "loss"


def test_a_finding_stands_under_the_question_whose_figure_shows_it(make_run: MakeRun) -> None:
    rows = series("noether/rayleigh/scale", [0.1, 0.2]), series("training/loss", FALL)
    run = make_run(*rows, series("curvature/sharpness", [2.0, 3.0]))
    found = [
        Finding(level="note", text="no evidence"),
        warning("noether/rayleigh/scale"),  # drawn beside the curvatures, not the laws
        warning("noether/rayleigh/rescale"),  # not drawn itself: where its quantity is
        warning("monitor/closure_grad_cos"),
    ]
    training, curvature = groups(found, places(run))
    assert (training["slug"], curvature["slug"]) == (TRAINING, "curvature")
    assert [f.text for f, _ in training["findings"]] == ["no evidence", "Broken: by 3."]
    assert [links for _, links in curvature["findings"]] == [
        {"noether/rayleigh/scale": "rayleigh"}, {"noether/rayleigh/rescale": "rayleigh"},
    ]  # fmt: skip
    assert curvature["levels"] == {"warning": 2}


def test_spikes_are_found_and_noise_is_none(make_run: MakeRun) -> None:
    rng = np.random.default_rng(0)
    values = [loss * float(np.exp(0.1 * rng.standard_normal())) for loss in FALL]
    assert spikes(make_run(series("training/loss", values, every=1))) == []
    values[120] *= 20
    (spike,) = spikes(make_run(series("training/loss", values, every=1)))
    assert (spike["step"], spike["kind"]) == (120, "spike")
    assert "x the median of its 20 neighbours" in spike["text"]


def test_events_are_marked_but_those_of_the_start(make_run: MakeRun) -> None:
    events = [
        {"step": step, "kind": "info", "probe": "monitor", "message": message}
        for step, message in ((0, "attached"), (40, "first\u202e line\nsecond"), (900, "too late"))
    ]
    run = make_run(
        [Record(step=i, name="training/loss", value=1.0) for i in range(50)], events=events
    )
    assert marks(run) == [{"step": 40, "kind": "event", "text": "first\\u202e line"}]
