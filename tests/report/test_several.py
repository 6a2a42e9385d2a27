"""Several runs on one page: a run looks alike everywhere, and what differs comes first."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eqtoolbox.command.cli import main
from eqtoolbox.record.record import Record
from eqtoolbox.report import Finding, Run, Topic, several, write_page
from eqtoolbox.report.overlays import lines
from eqtoolbox.report.page import content
from tests.report.runs import missing, rich_records, series, write_run
from tests.report.test_page import Page
from tests.report.test_page_in_browser import CHROMIUM, browse

pytest.importorskip("jinja2")

ERROR, LAW, DRIFT = (
    "equivariance/relative_error/cyclic4",
    "noether/first_order/rescale",
    "conservation/drift/rescale",
)
DRAW = """addEventListener("load", () => {
    drawAll();
    const seen = places.filter(p => document.querySelectorAll(`#${p.id} .main-svg`).length >= 2);
    document.documentElement.dataset.seen = seen.length;
})"""
EVIL = "<b onload=alert(1)>\x1b[31m"


def runs(home: Path, **records: list[Record]) -> list[Run]:
    return [Run(write_run(home / name, rows)) for name, rows in records.items()]


@pytest.fixture
def pair(tmp_path: Path) -> list[Run]:
    """One run that has lost a symmetry and one that keeps it."""
    loss = series("training/loss", [2.0 - 0.1 * i for i in range(20)])
    broken = series(ERROR, [0.4] * 6, floor=2e-7, verdict="violated")
    kept = series(ERROR, [1e-7] * 6, floor=2e-7, verdict="holds")
    laws = series(LAW, [1e-8] * 6, floor=1e-7, verdict="holds")
    drift = series(DRIFT, [0.02] * 6, floor=1e-7)
    return runs(tmp_path, plain=loss + broken + laws + drift, steerable=loss + kept + laws)


def tables(shown: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {table["title"]: table for section in shown["sections"] for table in section.tables}


def findings(shown: dict[str, Any], question: str = "What not all runs show") -> list[Finding]:
    found = {group["question"]: group["findings"] for group in shown["groups"]}
    return [f for f, _ in found.get(question, [])]


def figures(shown: dict[str, Any]) -> dict[str, Any]:
    panels = [panel for section in shown["sections"] for panel in section.panels]
    return {panel.slug: panel for panel in [*panels, *filter(None, [shown["loss"]])]}


def test_the_page_of_several_is_drawn_by_the_template_of_one(pair: list[Run]) -> None:
    ours = {"verdict", "words", "cards", "marks"}  # which the template does without
    assert content(pair[0]).keys() - ours <= several.content(pair).keys()


def test_a_run_has_one_colour_and_one_dash_in_all_figures(tmp_path: Path) -> None:
    rows = rich_records()
    names = ("a", "b", "c")
    shown = several.content(runs(tmp_path, **dict.fromkeys(names, rows)))
    found = figures(shown)
    assert {"loss", "curvature-sharpness", "curvature-stability", "conservation-drift-rescale"} <= (
        found.keys()
    )
    looks = {
        (key.label, key.colour, key.dash)
        for panel in found.values()
        for key in panel.keys
        if key.label in names
    }
    assert len(looks) == 3
    for panel in found.values():
        drawn = {t["name"]: t["line"] for t in panel.figure["data"] if t.get("name") in names}
        assert drawn.keys() == set(names), panel.slug
        if panel.slug != "loss":  # whose dashed lines are the medians
            assert {line["dash"] for line in drawn.values()} == {dash for _, _, dash in looks}


def test_thirty_six_runs_look_different(pair: list[Run]) -> None:
    drawn = lines(pair[:1] * 36, [str(i) for i in range(36)])
    assert len({(line.colour, line.dash) for line in drawn}) == 36


def test_steps_are_aligned_and_the_longest_run_sets_the_axis(tmp_path: Path) -> None:
    loss = "training/loss"
    pair = runs(tmp_path, a=series(loss, [2.0] * 50), b=series(loss, [1.0] * 5))
    shown = several.content(pair)
    long, short = (t for t in shown["loss"].figure["data"] if t["type"] == "scatter")
    assert (long["x"][-1], short["x"][-1]) == (490, 40)
    assert shown["loss"].figure["layout"]["xaxis"]["range"][1] > 490
    section = next(s for s in shown["sections"] if s.slug == "differences")
    assert section.remarks[0].startswith("The runs end at different steps")


def test_who_keeps_the_symmetry_is_one_row_a_symmetry_and_one_column_a_run(
    pair: list[Run],
) -> None:
    table = tables(several.content(pair))["Who keeps the symmetry"]
    assert table["columns"] == ["symmetry under", "plain", "steerable"]
    assert table["rows"] == [
        ["quarter turns", "violated: 0.4, floor 2e-7", "holds: 1e-7, floor 2e-7"]
    ]


def test_charges_are_judged_by_their_floor_and_laws_by_their_verdict(pair: list[Run]) -> None:
    found = tables(several.content(pair))
    (row,) = found["Whose charges are conserved"]["rows"]
    assert row == ["rescale", "violated: 0.02, floor 1e-7", "not measured"]
    (row,) = found["Whose gradient obeys the law"]["rows"]
    assert row[1:] == ["holds: 1e-8, floor 1e-7"] * 2


def test_differences_stand_open_and_what_does_not_differ_is_folded(pair: list[Run]) -> None:
    found = tables(several.content(pair))
    clear = next(table for title, table in found.items() if title.startswith("The clearest"))
    assert not clear["folded"]
    assert [row[0] for row in clear["rows"]] == [ERROR, DRIFT]
    assert clear["rows"][0][1:3] == ["0.4", "1e-7 (-100 %)"]
    alike = found["2 names that do not differ beyond the errors"]
    assert alike["folded"]
    assert {row[0] for row in alike["rows"]} == {"training/loss", LAW}


def test_findings_that_not_all_have_come_first_with_the_names_of_those(pair: list[Run]) -> None:
    shown = several.content(pair)
    texts = [f.text for f in findings(shown)]
    assert any(t.startswith("plain: Symmetry under quarter turns is violated") for t in texts)
    assert any(t.startswith("steerable: Symmetry under quarter turns holds") for t in texts)
    shared = [f for f in findings(shown, "What all runs show") if "loss fell" in f.text]
    assert not shared[0].text.startswith("plain")
    assert {e.name.split(":")[0] for e in shared[0].evidence} == {"plain", "steerable"}


def test_a_finding_with_other_numbers_says_whose_it_tells(tmp_path: Path) -> None:
    losses = [[c - 0.1 * i for i in range(20)] for c in (3.0, 5.0)]
    a, b = (series("training/loss", loss) for loss in losses)
    told = findings(several.content(runs(tmp_path, a=a, b=b)), "What all runs show")
    assert next(f for f in told if "fell" in f.text).text.endswith("(numbers of a).")
    same = several.content(runs(tmp_path, a=a, b=a))
    assert not any("numbers of" in f.text for f in findings(same, "What all runs show"))
    assert findings(same) == []


def test_all_but_one_is_said_shortly(tmp_path: Path) -> None:
    kept = series(ERROR, [1e-7] * 6, floor=2e-7, verdict="holds")
    broken = series(ERROR, [0.4] * 6, floor=2e-7, verdict="violated")
    shown = several.content(runs(tmp_path, a=kept, b=kept, c=broken, d=kept, e=kept))
    assert any(f.text.startswith("all but c: Symmetry") for f in findings(shown))


def test_options_that_differ_are_told_and_those_that_do_not_are_told_once(tmp_path: Path) -> None:
    rows, probes = series("training/loss", [1.0]), {"curvature": {"schedule": "every(5)"}}
    a = Run(write_run(tmp_path / "a", rows))
    b = Run(write_run(tmp_path / "b", rows, seed=7, probes=probes, eqtoolbox="0.9", format=2))
    shown = several.content([a, b])
    facts = dict(shown["facts"])
    assert facts["b"] == "seed 7"
    assert facts["all"].startswith("model ConvNet · parameters 61,706 · optimizer SGD, lr 0.05")
    table = tables(shown)["How the runs differ"]
    assert ["seed", "0", "7"] in table["rows"]
    assert ["probes.curvature.schedule", "every(10)", "every(5)"] in table["rows"]
    assert not any(row[0] in ("started", "format", "model.class") for row in table["rows"])
    assert shown["versions"] == (
        "a: eqtoolbox 0.1.0 · torch 2.13.0 · python 3.12.4 | "
        "b: eqtoolbox 0.9 · torch 2.13.0 · python 3.12.4"
    )


def test_a_spike_of_one_step_is_drawn_whatever_the_number_of_runs(tmp_path: Path) -> None:
    values = [1.0] * 20_000
    values[12_345] = 50.0
    rows = series("training/loss", values, every=1) + series("curvature/sharpness", values, every=1)
    home = write_run(tmp_path / "a", rows)
    found = figures(several.content([Run(home)] * 12))
    for slug in ("loss", "curvature-sharpness"):
        traces = [t for t in found[slug].figure["data"] if "median" not in t.get("name", "median")]
        assert len(traces) == 12
        for t in traces:
            assert t["x"][t["y"].index(50.0)] == 12_345
            assert len(t["y"]) < 1000


def test_steps_without_a_number_are_marked_in_the_colour_of_their_run(tmp_path: Path) -> None:
    name = "curvature/sharpness"
    lost = series(name, [1.0, 2.0]) + missing(name, [20, 30], "not_converged", "residual 0.1")
    shown = several.content(runs(tmp_path, a=lost, b=lost))
    panel = figures(shown)["curvature-sharpness"]
    marks = [t for t in panel.figure["data"] if t.get("yaxis") == "y2"]
    assert [t["x"] for t in marks] == [[20, 30]] * 2
    (key,) = (key for key in panel.keys if key.label == "no number")
    assert len(key.traces) == 2
    assert marks[0]["marker"]["line"]["color"] != marks[1]["marker"]["line"]["color"]
    assert marks[0]["y"] != marks[1]["y"]


def test_what_could_not_be_measured_is_said_with_the_names_of_the_runs(tmp_path: Path) -> None:
    lost = missing("curvature/sharpness", [0], "failed", "no second derivative")
    shown = several.content(runs(tmp_path, a=series("curvature/sharpness", [1.0]), b=lost, c=lost))
    section = next(s for s in shown["sections"] if s.slug == "curvature")
    assert section.remarks == (
        "b and c: Not measured: curvature/sharpness (failed: no second derivative).",
    )


def test_runs_of_one_record_of_none_and_of_other_names_make_a_page(tmp_path: Path) -> None:
    among = runs(
        tmp_path, a=[Record(step=3, name="a/b", value=1.0)], b=[], c=series("c/d/e", [1.0])
    )
    page = Page(write_page(among, tmp_path).read_text())
    assert "a, b and c" in page.text
    assert "2 further names that differ" in page.text or "a/b" in page.text
    assert page.figures == {}


def test_runs_of_the_same_name_are_told_by_their_parents(tmp_path: Path) -> None:
    rows = series("training/loss", [1.0])
    homes = [write_run(tmp_path / x / "run", rows) for x in "ab"]
    shown = several.content([Run(home) for home in homes])
    assert shown["title"] == "a/run and b/run"
    shown = several.content([Run(homes[0]), Run(homes[0])])
    assert shown["title"] == "run and run (2)"


def test_a_hostile_name_of_a_directory_stays_text(tmp_path: Path) -> None:
    rows = series("training/loss", [1.0, 0.5]) + series(ERROR, [0.4] * 2, floor=1e-7)
    among = runs(tmp_path, **{EVIL: rows, "b": rows + missing("x/y", [0], "failed", EVIL)})
    text = write_page(among, tmp_path / "page.html").read_text()
    assert "<b onload" not in text
    assert "\x1b" not in text
    assert "<b onload=alert(1)>\\x1b[31m" in Page(text).text
    for figure in Page(text).figures.values():  # plotly reads tags
        assert not any("<b" in t.get("name", "") for t in figure["data"])


def test_probes_of_ones_own_are_drawn_over_each_other(tmp_path: Path) -> None:
    topic = Topic(question="How long?", slug="own", probes=("mine",))
    homes = [write_run(tmp_path / x, series("mine/length", [1.0, 2.0])) for x in "ab"]
    shown = several.content([Run(home, topics=[topic]) for home in homes])
    (section,) = (s for s in shown["sections"] if s.slug == "own")
    assert [panel.slug for panel in section.panels] == ["mine-length"]


def test_a_thousand_families_make_a_page_that_ends(tmp_path: Path) -> None:
    rows = [Record(step=0, name=f"noether/first_order/f{i}", value=1e-8) for i in range(1000)]
    shown = several.content(runs(tmp_path, a=rows, b=[replace(r, value=1.0) for r in rows]))
    section = next(s for s in shown["sections"] if s.slug == "conservation")
    assert len(section.panels) == 12
    assert section.remarks == ("988 figures more are left out.",)
    assert all(len(table["rows"]) <= 500 for table in tables(shown).values())
    assert any("500 rows more are left out" in title for title in tables(shown))


def test_one_run_in_a_list_is_the_page_of_that_run(pair: list[Run], tmp_path: Path) -> None:
    alone = write_page(pair[0], tmp_path / "one.html").read_text()
    assert write_page(pair[:1], tmp_path / "list.html").read_text() == alone
    assert write_page(pair, tmp_path) == tmp_path / "compared.html"


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ([], ValueError, "expected a run or several, got none"),
        ("runs/a", TypeError, r"expected runs, got 'runs/a'; read one with eq\.Run"),
        (["runs/a"], TypeError, "expected runs, got 'runs/a'"),
        (None, TypeError, "expected runs, got None"),
    ],
)
def test_what_is_no_run_is_refused(
    given: Any, error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        write_page(given, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_beside_the_runs_and_says_where(
    pair: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    homes = [str(run.path) for run in pair]
    assert main(["report", *homes]) == 0
    assert capsys.readouterr().out.strip() == str((tmp_path / "compared.html").resolve())
    assert main(["report", *homes, "-o", str(tmp_path / "x.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["page"].endswith("x.html")
    assert main(["report", homes[0]]) == 0
    assert (pair[0].path / "report.html").exists()
    assert main(["report", homes[0], str(tmp_path / "plian")]) == 2
    assert "did you mean 'plain'" in capsys.readouterr().err


def test_a_finding_leads_to_the_figure_of_its_numbers(pair: list[Run]) -> None:
    (group, _) = several.content(pair)["groups"]
    assert group["open"] and group["levels"]["warning"] == 1
    f, links = group["findings"][0]
    assert f.level == "warning"
    assert links == {f"plain: {ERROR}": ERROR.replace("/", "-")}


def test_each_run_is_told_in_a_sentence(pair: list[Run]) -> None:
    told = {a["question"]: a["answer"] for a in several.content(pair)["answers"]}
    assert told["plain"].startswith("It learned: the loss went from")
    assert told["plain"].endswith("symmetry under quarter turns is violated.")
    assert told["steerable"].endswith("No alarm and no warning.")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_draws_the_page_of_several(tmp_path: Path) -> None:
    rows = rich_records()
    among = runs(tmp_path, a=rows, b=[replace(r, value=0.9 * r.value) for r in rows])
    page = write_page(among, tmp_path)
    text, count = page.read_text(), len(Page(page.read_text()).plots)
    assert count > 15
    page.write_text(text.replace("</body>", f"<script>{DRAW}</script></body>"))
    document, console = browse(page.as_uri(), tmp_path / "profile")
    assert console == []
    assert f'data-seen="{count}"' in document
