"""What a live view shows of a run, and how it draws it."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

from eqtoolbox.record.record import Record
from eqtoolbox.report.live.glance import TOP, Watching
from eqtoolbox.report.live.growing import Growing
from eqtoolbox.report.live.pulse import BEATS, PATIENCE, Speed, pulse
from eqtoolbox.report.live.screen import BARS, LOST, drawn, spark
from tests.report.runs import series, write_run

rich = pytest.importorskip("rich.console")


def shown(watching: Watching, width: int = 80) -> str:
    console = rich.Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(drawn(watching.look(last=True), width=width))
    return console.export_text()


def test_a_finished_run_has_the_mean_speed_of_all_its_steps(tmp_path: Path) -> None:
    rows = series("training/loss", [1.0] * 101)  # to step 1000, in 754 s
    assert Watching(Growing(write_run(tmp_path, rows))).look().speed == pytest.approx(1000 / 754)
    resumed = write_run(tmp_path / "resumed", rows, segments=2)  # which stood still in between
    assert Watching(Growing(resumed)).look().speed is None


def test_a_glance_at_a_rich_run(rich_run: Path) -> None:
    glance = Watching(Growing(rich_run)).look(last=True)
    assert glance.model == "ConvNet" and glance.step == 999 and glance.pulse == "finished"
    assert len(glance.findings) == TOP and glance.left_out > 0
    assert glance.findings[0].level == "warning" and glance.findings[0].remedy
    by_name = {q.what: q for q in glance.quantities}
    assert list(by_name) == ["sharpness", "error, quarter turns", "drift, scale", "laws"]
    assert "of 2/lr = 40" in by_name["sharpness"].against  # 2 / 0.05
    assert by_name["error, quarter turns"].verdict == "violated"
    assert "worst of 3" in by_name["drift, scale"].against
    assert by_name["laws"].value == "9 of 9 hold" and by_name["laws"].verdict == "holds"
    assert "resumed as segment 1" in glance.events[-1]


def test_momentum_has_a_threshold_that_is_not_two_over_lr(tmp_path: Path) -> None:
    rows = series("training/learning_rate", [0.1] * 5) + series("curvature/sharpness", [19.0] * 5)
    rows += series("curvature/stability", [0.5] * 5)
    (sharp,) = Watching(Growing(write_run(tmp_path, rows))).look().quantities
    assert sharp.against == "50 % of threshold = 38" and sharp.verdict == "below the edge"


def test_a_broken_law_is_named(tmp_path: Path) -> None:
    rows = series("noether/second_order/rescale", [0.5] * 5, floor=1e-7, verdict="violated")
    rows += series("noether/first_order/rescale", [1e-9] * 5, floor=1e-7, verdict="holds")
    (laws,) = Watching(Growing(write_run(tmp_path, rows))).look().quantities
    assert (laws.value, laws.verdict) == ("1 of 2 hold", "violated")
    assert "second order/rescale" in laws.against


def test_what_is_appended_shows_at_the_next_look(tmp_path: Path) -> None:
    home = write_run(tmp_path, series("training/loss", [1.0]), finished=None)
    watching = Watching(Growing(home))
    assert watching.look().step == 0
    write = (home / "records.jsonl").open("a")
    with write:
        write.write('{"step": 30, "name": "training/loss", "value": 0.5}\n')
    glance = watching.look()
    assert glance.step == 30 and glance.losses.tolist() == [1.0, 0.5]
    assert glance.pulse == "running" and glance.speed is not None and glance.speed > 0


def test_findings_of_a_long_run_are_made_at_leisure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = write_run(tmp_path, series("training/loss", [1.0]), finished=None)
    watching, made = Watching(Growing(home)), []

    def slow() -> list[object]:
        made.append(time.sleep(0.05))
        return []

    monkeypatch.setattr(watching.run, "findings", slow)
    for step in range(1, 6):
        with (home / "records.jsonl").open("a") as file:
            file.write(f'{{"step": {step}, "name": "training/loss", "value": 0.5}}\n')
        assert watching.look().step == step
    assert len(made) == 1
    watching.look(last=True)
    assert len(made) == 2


def test_a_run_falls_silent_after_ten_beats_and_a_minute_at_least() -> None:
    assert pulse(False, PATIENCE - 1) == "running" and pulse(False, PATIENCE + 1) == "silent"
    assert pulse(False, 10 * PATIENCE, beat=10 * PATIENCE / BEATS + 1) == "running"
    assert pulse(True, 1e9) == "finished"


def test_the_speed_is_that_of_the_last_half_minute() -> None:
    speed = Speed()
    assert speed.seen(0, at=0.0) is None and speed.seen(0, at=1.0) is None
    for t in range(2, 100):
        found = speed.seen(10 * t if t < 50 else 500 + 2 * (t - 50), at=float(t))
    assert found == pytest.approx(2.0)
    assert speed.seen(3, at=101.0) is None  # another run


def test_a_sparkline_shows_extremes_and_what_is_not_finite() -> None:
    assert spark(np.linspace(0, 1, 8), 8) == BARS
    assert spark(np.logspace(0, 7, 8), 8) == BARS  # logarithmic
    assert spark(np.array([1.0, np.nan, 1.0]), 5) == f"{BARS[0]}{LOST}{BARS[0]}"
    assert spark(np.full(9, np.inf), 3) == 3 * LOST
    assert len(spark(np.random.default_rng(0).random(1000), 40)) == 40
    assert spark(np.array([-1e308, 1e308, 1e308]), 2) == BARS[0] + BARS[-1]
    assert [spark(np.ones(3), width) for width in (-4, 0)] == ["", ""]


def test_what_to_try_is_said_once_and_not_of_notes(tmp_path: Path) -> None:
    names = [f"equivariance/relative_error/{n}" for n in ("cyclic4", "flip", "translation")]
    rows = [r for n in names for r in series(n, [0.5] * 5, floor=1e-7, verdict="violated")]
    rows += series("training/loss", np.linspace(2.0, 0.1, 30).tolist())
    watching = Watching(Growing(write_run(tmp_path, rows)))
    levels = [f.level for f in watching.look(last=True).findings]
    assert levels == ["warning"] * 3
    assert shown(watching, 200).count("Try: augment") == 1


HOSTILE = "[red]x[/red] \x1b[31mred\x1b]8;;https://a.b\x07link \u202egnp :smile: [/nothing]\n\tend"


def test_what_a_run_holds_is_shown_literally(tmp_path: Path) -> None:
    event = {"time": 1.0, "step": 0, "kind": "warning", "probe": "p", "message": HOSTILE}
    unseen = Record(step=0, name="monitor/steps_unseen", value=3.0, facts={"why": HOSTILE})
    rows = [*series("training/loss", [1.0]), unseen]
    home = write_run(tmp_path, rows, events=[event], model={"class": HOSTILE})
    out = shown(Watching(Growing(home)), width=300)
    assert "\x1b" not in out and "\u202e" not in out and "\x07" not in out
    assert out.count("[red]x[/red] \\x1b[31mred") >= 2
    assert ":smile: [/nothing]  end" in out and "\\u202egnp" in out


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(rich_run: Path, width: int) -> None:
    out = shown(Watching(Growing(rich_run)), width)
    assert max(map(len, out.splitlines())) <= width and "sharpness" in out


def test_a_run_without_anything_is_shown(tmp_path: Path) -> None:
    watching = Watching(Growing(write_run(tmp_path, [], finished=None)))
    out = shown(watching)
    assert "step 0" in out and dataclasses.replace(watching.look()).losses.size == 0
