"""The page: one file without network, every panel that has data, drawn in a real browser."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from eqtoolbox.record.record import Record
from eqtoolbox.report import Run, write_page
from eqtoolbox.report.page import content, publish
from tests.report.runs import STALE, UNCERTAIN, missing, series

pytest.importorskip("plotly")
pytest.importorskip("jinja2")

MakeRun = Callable[..., Run]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
PANELS = {
    "loss", "equivariance-relative_error", "equivariance-orbit_variance",
    "equivariance-percent_of_loss", "conservation-drift", "causes-rescale", "causes-scale",
    "noether-first_order", "noether-second_order", "eigenvalues", "stability", "overlaps",
    "rayleigh", "seconds", "overhead",
}  # fmt: skip


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
        if self._script:
            self.figures[self._script.removesuffix("-figure")] = json.loads(data)
        elif self._script is None:
            self.words.append(data)


@pytest.fixture(scope="module")
def rich_page(rich_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(Run(rich_run), tmp_path_factory.mktemp("page") / "deep" / "report.html")


def page_file(run: Run) -> Path:
    return write_page(run, run.path / "page.html")


def page_of(run: Run) -> Page:
    return Page(page_file(run).read_text())


def test_the_page_is_one_file_that_loads_nothing(rich_page: Path) -> None:
    page = Page(rich_page.read_text())
    assert [r for r in page.resources if r != "data:,"] == []
    assert "default-src 'none'" in rich_page.read_text()
    assert list(rich_page.parent.iterdir()) == [rich_page]
    assert not re.search(r"url\(|@import", rich_page.read_text().split("</style>")[0])


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
    assert text.index("What the run shows") < text.index("Is it equivariant?")
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


# in a browser


def browse(address: str, profile: Path, *options: str) -> tuple[str, list[str]]:
    """The page's document after its scripts ran, and what the console said."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", f"--user-data-dir={profile}", "--enable-logging=stderr",
        "--virtual-time-budget=10000", *options, "--dump-dom", address,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")


@needs_browser
def test_a_browser_draws_every_panel_without_an_error(rich_page: Path, tmp_path: Path) -> None:
    document, console = browse(rich_page.as_uri(), tmp_path)
    assert console == []
    assert f'data-drawn="{len(PANELS)}"' in document
    # plotly lays three drawings over each other in every figure
    assert len(re.findall(r'<svg[^>]*class="main-svg"', document)) >= 2 * len(PANELS)
    assert len(re.findall(r'class="[^"]*scatterlayer', document)) >= len(PANELS) - 1


@needs_browser
def test_the_browser_check_hears_an_error(rich_page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<script>undefinedFunction()</script>")
    _, console = browse(broken.as_uri(), tmp_path / "profile")
    assert any("undefinedFunction is not defined" in line for line in console)


@needs_browser
def test_a_phone_needs_no_sideways_scrolling(rich_page: Path, tmp_path: Path) -> None:
    frame = rich_page.parent / "phone.html"
    frame.write_text(f"""<iframe src="{rich_page.name}" style="width:390px;height:900px"></iframe>
        <script>onload = () => setTimeout(() => {{
            const page = document.querySelector("iframe").contentDocument;
            const wide = [...page.querySelectorAll(".plot svg.main-svg")].map(s => s.clientWidth);
            document.title = `${{page.documentElement.scrollWidth}} ${{Math.max(...wide)}}`;
        }}, 3000)</script>""")
    document, _ = browse(frame.as_uri(), tmp_path, "--allow-file-access-from-files")
    frame.unlink()
    page, plot = map(int, re.findall(r"<title>(\d+) (\d+)</title>", document)[0])
    assert page <= 390
    assert 250 < plot <= 350
