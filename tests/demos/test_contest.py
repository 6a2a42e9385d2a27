"""Enforced against plain: curves over fewer samples, prices, and words that say no more."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from eqtoolbox.command.demo.bought import findings, section
from eqtoolbox.command.demo.catalogue import DEMOS
from eqtoolbox.command.demo.contest import Bought, Paid, Reached, contest, fewer, price
from eqtoolbox.command.demo.show import show
from eqtoolbox.command.demo.training import free, judged, learned, train
from eqtoolbox.demos import robot
from eqtoolbox.demos.demo import Contest, Data, Entrant
from eqtoolbox.enforce import canonicalised

SEVEN = ("rotated", "volume", "robot", "flow", "burgers", "molecules", "denoiser")


def test_seven_demos_end_with_enforced_against_plain() -> None:
    assert tuple(name for name, demo in DEMOS.items() if demo.contest) == SEVEN
    for name in SEVEN:
        asked = DEMOS[name].contest
        assert asked is not None and len(asked.every) == 3 and asked.every[-1] == 1
        assert set(asked.entries) <= DEMOS[name].entries.keys()


def test_what_is_learned_without_the_monitor_is_what_is_learned_with_it() -> None:
    data = robot.load()
    watched = train(robot.DEMO, "augmented", data, steps=6, schedule=3)
    alone = learned(robot.DEMO, "augmented", data, steps=6)
    for p, q in zip(watched.network.parameters(), alone.parameters(), strict=True):
        assert torch.equal(p, q)
    assert judged(robot.DEMO, alone, data) == (watched.score, watched.stderr)


def test_fewer_samples_are_some_of_the_same() -> None:
    x, y = fewer((torch.arange(10), 2 * torch.arange(10)), 4)
    assert x.tolist() == [0, 4, 8] and torch.equal(y, 2 * x)


@pytest.fixture(scope="module")
def small() -> Bought:
    asked = Contest(enforced=("averaged",), every=(8, 2, 1), steps=60, seeds=2)
    return contest(robot.DEMO, asked, robot.load())


def test_a_contest_trains_each_entry_on_each_size(small: Bought) -> None:
    assert list(small.curves) == ["plain", "averaged"] and small.steps == 60
    for points in small.curves.values():
        assert [p.samples for p in points] == [32, 128, 256]
        assert points[-1].score < points[0].score and all(p.stderr > 0 for p in points)


def test_steps_of_the_command_line_shorten_the_contest() -> None:
    asked = Contest(enforced=("averaged",), every=(1,), steps=60, seeds=1)
    assert contest(robot.DEMO, asked, robot.load(), steps=2).steps == 2


def test_forwards_are_counted_in_rows_of_the_plain_network() -> None:
    entries = robot.DEMO.entries | {
        "posed": Entrant(network=lambda: canonicalised(robot.PlainArm(), robot.MIRROR)),
        "other": Entrant(network=lambda: nn.Linear(12, 4)),
    }  # and "tied", which answers exported
    demo, data = replace(robot.DEMO, entries=entries), robot.load()
    found = {
        e: price(demo, "plain", e, data) for e in ("plain", "averaged", "posed", "other", "tied")
    }
    assert [(p.forwards, p.scores) for p in found.values()] == [
        (1, 0), (2, 0), (1, 2), (0, 0), (1, 0)
    ]  # fmt: skip
    assert found["averaged"].step > 1.0 and found["averaged"].answer > 1.0


def test_of_tied_parameters_those_are_counted_that_are_free() -> None:
    torch.manual_seed(0)
    plain, made = robot.PlainArm(), robot.tied_net()
    assert free(plain) == sum(p.numel() for p in plain.parameters())
    assert (
        0.9
        < free(made) / free(plain)
        < 1.1
        < sum(p.numel() for p in made.parameters()) / free(made)
    )


def told(ours: tuple[float, ...], theirs: tuple[float, ...], rising: bool = False) -> list[str]:
    """What is said of an enforced network of such errors, each +- 1 %."""
    outcome = lambda score: SimpleNamespace(score=score, stderr=0.01)
    points = lambda scores: [
        Reached(samples=n, score=s, stderr=0.01) for n, s in zip((10, 20, 40), scores, strict=True)
    ]
    bought = Bought(
        curves={"plain": points(theirs), "enforced": points(ours)}, steps=9, seeds=2,
        prices={"enforced": Paid(forwards=4, scores=0, step=3.0, answer=4.0)},
    )  # fmt: skip
    demo = replace(robot.DEMO, score=replace(robot.DEMO.score, rising=rising))
    ends: dict = {"enforced": outcome(ours[-1]), "plain": outcome(theirs[-1])}
    return [f.text for f in findings(demo, Contest(enforced=("enforced",)), ends, bought)]


def test_it_is_said_where_enforcing_helps_where_not_and_where_it_harms() -> None:
    score, sizes = told((0.2, 0.15, 0.1), (0.5, 0.4, 0.3))
    assert "enforced (10 % ± 1 %) is better than plain (30 % ± 1 %). It costs 4 forwards" in score
    assert "3 times the time of a training step and 4 times that of an answer." in score
    assert sizes.endswith("10 do more for it than 40 for plain.")
    score, sizes = told((0.5, 0.4, 0.3), (0.2, 0.15, 0.1))
    assert "is worse than plain" in score and sizes.endswith("worse from 10, 20 and 40.")
    score, sizes = told((0.3, 0.3, 0.3), (0.5, 0.3, 0.29))
    assert "is not to be told apart from plain" in score
    assert sizes.endswith("better from 10, not to be told apart from 20 and 40.")
    assert "is worse than plain" in told((0.1,) * 3, (0.3,) * 3, rising=True)[0]


def test_the_section_has_the_numbers_and_the_curve(small: Bought) -> None:
    data = robot.load()
    ends = {e: train(robot.DEMO, e, data, steps=3, schedule=1) for e in ("plain", "averaged")}
    made = section(robot.DEMO, Contest(enforced=("averaged",)), ends, small)
    ends_table, sizes = made.tables
    assert [row[0] for row in ends_table["rows"]] == ["plain", "averaged"]
    assert "holds" in ends_table["rows"][1][2] and "violated" in ends_table["rows"][0][2]
    assert [row[0] for row in sizes["rows"]] == ["32", "128", "256"]
    (panel,) = made.panels
    lines = [t for t in panel.figure["data"] if t.get("meta")]
    assert [t["x"] for t in lines] == [[32, 128, 256]] * 2
    assert lines[1]["y"] == pytest.approx(
        [100 * p.score for p in small.curves["averaged"]], rel=1e-5
    )


def test_findings_of_a_demo_are_on_its_page_and_in_its_json(tmp_path) -> None:
    data = robot.load()
    short = replace(robot.DEMO, load=lambda: Data(train=data.train, test=fewer(data.test, 4)))
    found = show(short, tmp_path, steps=4, quiet=True)
    page = (tmp_path / "compared.html").read_text()
    assert found["report"] == str(tmp_path / "compared.html")
    assert "What does enforcing the symmetry buy" in page and "data-efficiency-figure" in page
    said = [text for text in found["comparison"] if text.startswith(("Enforced", "From 16"))]
    assert len(said) == 4 and "kept to rounding by averaged" in page
    for text in said:
        assert text.split(" (")[0].split(":")[0] in page
    assert found["enforced"]["steps"] == 4 and len(found["enforced"]["curves"]["plain"]) == 3
