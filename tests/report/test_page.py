"""The page: one file without network, every panel that has data, drawn in a real browser."""

import hashlib
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from eqtoolbox.record.record import Record
from eqtoolbox.report import Run, write_page
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.page import LAYOUT, content, publish
from tests.report.runs import PANELS, STALE, UNCERTAIN, missing, series

pytest.importorskip("plotly")
pytest.importorskip("jinja2")

MakeRun = Callable[..., Run]
SHA256 = "99784e3abfb07b142a15e521a439e6d9addceadb3f79553fd24c72774f0649ba"


class Page(HTMLParser):
    """What a page loads, shows and draws."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.resources: list[str] = []
        self.plots: set[str] = set()
        self.figures: dict[str, dict[str, Any]] = {}
        self.sections: list[str] = []
        self.words: list[str] = []
        self.classes: list[str] = []
        self._script: str | None = None
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words)).replace("\u200b", "")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {k: v or "" for k, v in attrs}
        self.resources += [given[k] for k in ("src", "href", "srcset", "action") if k in given]
        self.classes += given.get("class", "").split()
        if "plot" in given.get("class", "").split():
            self.plots.add(given["id"])
        if tag == "section":
            self.sections.append(given["id"])
        self._script = given.get("id", "") if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script and self._script.endswith("-figure"):
            self.figures[self._script.removesuffix("-figure")] = json.loads(data)
        elif self._script is None:
            self.words.append(data)


def page_file(run: Run) -> Path:
    return write_page(run, run.path / "page.html")


def page_of(run: Run) -> Page:
    return Page(page_file(run).read_text())


def test_the_page_is_one_file_that_loads_nothing(rich_page: Path) -> None:
    page = Page(rich_page.read_text())
    assert [r for r in page.resources if r != "data:," and not r.startswith("#")] == []
    assert "default-src 'none'" in rich_page.read_text()
    assert list(rich_page.parent.iterdir()) == [rich_page]
    assert not re.search(r"url\(|@import", rich_page.read_text().split("</style>")[0])


def test_every_link_leads_somewhere(rich_page: Path) -> None:
    html = rich_page.read_text()
    anchors = [r[1:] for r in Page(html).resources if r.startswith("#")]
    assert {"stability", "conservation-drift", "equivariance", "findings"} <= set(anchors)
    assert [a for a in anchors if f'id="{a}"' not in html] == []


def test_the_reader_of_pages_sees_a_foreign_resource() -> None:
    page = Page('<img src="https://example.org/a.png"><link href="//cdn/x.css">')
    assert page.resources == ["https://example.org/a.png", "//cdn/x.css"]


def test_a_full_run_has_every_panel_with_its_reading(rich_page: Path) -> None:
    page = Page(rich_page.read_text())
    assert page.plots == PANELS == set(page.figures)
    assert page.sections == [
        "findings", "equivariance", "conservation", "curvature", "cost", "events", "values",
    ]  # fmt: skip


def test_figures_are_valid_for_plotly_and_strict_json(rich_page: Path) -> None:
    from plotly.graph_objects import Figure

    for slug, figure in Page(rich_page.read_text()).figures.items():
        Figure(figure)  # raises on a property that plotly does not know
        json.dumps(figure, allow_nan=False)
        assert figure["data"], slug
    with pytest.raises(ValueError, match="Invalid property"):
        Figure({"data": [{"type": "scatter", "colour": "red"}]})


def test_uncertified_values_are_drawn_nowhere(rich_page: Path) -> None:
    page = Page(rich_page.read_text())
    heights = [
        y for f in page.figures.values() for t in f["data"] for y in t["y"] if isinstance(y, float)
    ]
    assert len(heights) > 1000
    assert not {UNCERTAIN, STALE} & set(heights)
    assert str(UNCERTAIN) not in page.text


def test_error_bands_lie_around_their_lines(rich_page: Path) -> None:
    data = Page(rich_page.read_text()).figures["eigenvalues"]["data"]
    assert data[2]["name"] == "λ1"
    upper, lower, line = (t["y"] for t in data[:3])
    assert all(a < b < c for a, b, c in zip(lower, line, upper, strict=True))
    assert data[1]["fill"] == "tonexty"


def test_findings_stand_on_top_with_their_evidence(rich_page: Path) -> None:
    page = Page(rich_page.read_text())
    text = page.text
    assert text.index("What the run shows") < text.rindex("Is it equivariant?")
    assert "Symmetry under quarter turns is violated" in text
    assert "equivariance/relative_error/cyclic4 0.4" in text
    assert {"warning", "note", "good"} <= set(page.classes)


def test_a_message_cannot_inject_markup(rich_page: Path) -> None:
    assert "<b>here</b>" not in rich_page.read_text()
    assert "is not implemented <b>here</b>" in Page(rich_page.read_text()).text


def test_a_script_in_a_name_or_note_stays_text(make_run: MakeRun) -> None:
    evil = "</script><script>alert(1)</script>"
    rows = missing("curvature/sharpness", [0], "failed", evil)
    rows += series("equivariance/relative_error/" + evil, [0.1, 0.2], note=evil)
    html = write_page(run := make_run(rows, model={"class": evil}), run.path / "x.html").read_text()
    assert "<script>alert" not in html


def test_a_page_without_data_is_small(make_run: MakeRun) -> None:
    assert len(page_file(make_run()).read_bytes()) <= 1_500_000


def test_a_section_may_hold_tables(make_run: MakeRun, tmp_path: Path) -> None:
    table = {"title": "Accuracy", "columns": ["run", "share"], "numeric": [False, True]}
    section = {"question": "Which is best?", "slug": "best", "explanation": "", "panels": []}
    section |= {"tables": [table | {"rows": [["<b>first</b>", "-0.5"]]}]}
    shown = content(make_run()) | {"sections": [section]}
    html = publish(shown, tmp_path / "several.html").read_text()
    assert "<caption>Accuracy</caption>" in html
    assert '<td class="n">−0.5</td>' in html
    assert "&lt;b&gt;first&lt;/b&gt;" in html


def test_the_library_is_the_published_one_with_its_licence() -> None:
    code = (LAYOUT / "plotly-basic.min.js").read_bytes()
    assert b"Licensed under the MIT license" in code[:300]
    assert "Permission is hereby granted" in (LAYOUT / "plotly-LICENSE").read_text()
    # of plotly.js-basic-dist-min 4.1.1 on npm
    assert hashlib.sha256(code).hexdigest() == SHA256


def test_many_lines_get_figures_of_their_own(make_run: MakeRun) -> None:
    def multiples(count: int) -> list[Any]:
        rows = [series(f"noether/first_order/f{i}", [1e-9, 2e-9], floor=1e-8) for i in range(count)]
        layout = page_of(make_run(*rows)).figures["noether-first_order"]["layout"]
        return list(layout.get("meta", {}).get("multiples", []))

    assert multiples(5) == []
    assert [traces for _, traces in multiples(6)] == [[i] for i in range(6)]
    assert multiples(6)[0][0] == "f0 1.5·10⁻⁹ holds"


def test_a_floor_far_below_is_told_and_not_drawn(make_run: MakeRun) -> None:
    def drawn(error: float) -> tuple[int, list[str]]:
        rows = series("equivariance/relative_error/flip", [error] * 2, floor=1e-7)
        figure = page_of(make_run(rows)).figures["equivariance-relative_error"]
        return len(figure["data"]), [note["text"] for note in figure["layout"]["annotations"]]

    assert drawn(0.2) == (1, ["↓ noise floor 10⁻⁷, 6 decades below"])
    assert drawn(1e-6) == (2, [])


def test_axes_say_what_they_show_and_in_which_unit(rich_page: Path) -> None:
    titles = {
        slug: figure["layout"]["yaxis"]["title"]["text"]
        for slug, figure in Page(rich_page.read_text()).figures.items()
        if slug != "seconds"
    }
    assert titles["eigenvalues"] == "eigenvalue (loss per parameter²)"
    assert titles["conservation-drift"] == "drift (%)"
    assert titles["stability"] == "stability (dimensionless)"
    assert all(re.fullmatch(r".+ \(.+\)", title) for title in titles.values())


def test_layers_are_drawn_in_order_with_their_floor(make_run: MakeRun) -> None:
    name = "equivariance/layer_error/flip"
    sizes = {"00.stem": 0.0, "01.conv": 0.4, "02.10": 0.3}
    rows = [series(f"{name}/{layer}", [size], floor=1e-6) for layer, size in sizes.items()]
    figure = page_of(make_run(*rows)).figures["equivariance-layer_error"]
    line, floor = figure["data"]
    assert line["y"] == floor["y"] == ["stem", "conv", "10"]
    assert line["text"] == ["0", "0.4", "0.3"]
    assert line["x"] == [pytest.approx(1e-7), 0.4, 0.3]  # an exact zero: a decade below the floor
    assert floor["x"] == [1e-6] * 3
    far = [series(f"{name}/{layer}", [0.5], floor=1e-6) for layer in sizes]
    page = page_of(make_run(*far))
    assert len(page.figures["equivariance-layer_error"]["data"]) == 1
    assert "Noise floor 10⁻⁶, 5 decades below." in page.text


def test_a_page_needs_no_headline(make_run: MakeRun, tmp_path: Path) -> None:
    shown = content(make_run(series("training/loss", [2.0, 1.0])))
    for key in ("verdict", "answers", "cards", "groups", "marks", "happened"):
        del shown[key]
    shown["good"] = [Finding(level="good", text="All is well.")]
    page = Page(publish(shown, tmp_path / "bare.html").read_text())
    assert page.plots == {"loss"}
    assert "good All is well." in page.text


def test_panels_without_data_are_left_out(make_run: MakeRun) -> None:
    page = page_of(make_run(series("training/loss", [2.0, 1.0]), series("cost/overhead", [0.01])))
    assert page.plots == {"loss", "overhead"}
    assert page.sections == ["findings", "cost", "values"]


def test_a_question_that_does_not_apply_says_why(make_run: MakeRun) -> None:
    note = "image symmetries need inputs of four dimensions"
    rows = missing("equivariance/relative_error", [0, 10], "not_applicable", note)
    page = page_of(make_run(rows))
    assert "equivariance" in page.sections
    assert page.plots == set()
    assert f"Not measured: equivariance/relative_error (not applicable: {note})." in page.text


def test_a_probe_that_failed_once_but_measured_is_not_called_unmeasured(rich_page: Path) -> None:
    text = Page(rich_page.read_text()).text
    assert "Not measured: equivariance/relative_error/so2" in text
    assert "Not measured: noether" not in text


def test_charges_at_rest_get_no_causes(rich_page: Path) -> None:
    assert "causes-translation" not in Page(rich_page.read_text()).plots


def test_shares_against_the_drift_are_lines_not_areas(make_run: MakeRun) -> None:
    def causes(decay: float) -> list[dict[str, Any]]:
        rows = series("conservation/drift/scale", [0.1, 0.2])
        rows += series("conservation/share_decay/scale", [decay] * 2)
        rows += series("conservation/share_finite_step/scale", [1 - decay] * 2)
        return list(page_of(make_run(rows)).figures["causes-scale"]["data"])

    assert all("stackgroup" in t for t in causes(0.4))
    assert not any("stackgroup" in t for t in causes(-0.4))


def test_exact_zeros_are_shown_on_a_log_axis(make_run: MakeRun) -> None:
    exact = series("equivariance/relative_error/flip", [0.0, 0.0], floor=1e-7, verdict="holds")
    other = series("equivariance/relative_error/cyclic4", [0.1, 0.2], floor=1e-7)
    page = page_of(make_run(exact, other))
    flip = next(
        t for t in page.figures["equivariance-relative_error"]["data"] if t.get("name") == "flips"
    )
    assert all(y is not None and 0 < y < 1e-7 for y in flip["y"])
    assert flip["text"] == ["0", "0"]
    assert "Exact zeros sit on the lower edge" in page.text


def test_the_budget_terms_stand_in_for_missing_shares(make_run: MakeRun) -> None:
    rows = series("conservation/drift/scale", [0.1, 0.2])
    rows += series("conservation/decay/scale", [1e-5, -1e-5])
    (trace,) = page_of(make_run(rows)).figures["causes-scale"]["data"]
    assert trace["y"] == [1e-5, -1e-5]


def test_where_nothing_could_be_said_is_marked(rich_page: Path) -> None:
    data = Page(rich_page.read_text()).figures["stability"]["data"]
    (marks,) = (t for t in data if t.get("yaxis") == "y2")
    assert marks["x"] == [120, 550, 830]
    assert marks["text"][0].startswith("not converged: Ritz residual")


def test_long_series_are_thinned_but_keep_their_spike(make_run: MakeRun) -> None:
    values = [1.0] * 20_000
    values[12_345] = 50.0
    loss = page_of(make_run(series("training/loss", values, every=1))).figures["loss"]["data"][0]
    assert len(loss["y"]) < 2000
    assert 50.0 in loss["y"]
    assert loss["x"][loss["y"].index(50.0)] == 12_345


def test_a_single_measurement_makes_a_page(make_run: MakeRun) -> None:
    rows = [Record(step=0, name="curvature/sharpness", value=2.0, stderr=0.1)]
    rows += [Record(step=0, name="conservation/drift/scale", value=0.0)]
    page = page_of(make_run(rows))
    assert {"eigenvalues", "conservation-drift"} <= page.plots


def test_an_empty_run_makes_a_page_that_says_so(make_run: MakeRun) -> None:
    assert "There is nothing to report" in page_of(make_run()).text


def test_a_directory_gets_a_report_html(make_run: MakeRun, tmp_path: Path) -> None:
    assert write_page(make_run(), tmp_path) == tmp_path / "report.html"


def test_a_page_needs_no_python_plotly(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in ("plotly", "plotly.offline", "plotly.graph_objects"):
        monkeypatch.setitem(sys.modules, module, None)
    assert write_page(make_run(), tmp_path).exists()


def test_a_missing_extra_is_named(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'pip install "eqtoolbox\[report\]"'):
        write_page(make_run(), "never.html")
