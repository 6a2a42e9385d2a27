"""The page in a real browser: what is drawn, clicked, linked, saved and printed."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from eqtoolbox.report import Run, write_page
from eqtoolbox.report.drawing import PALETTE
from eqtoolbox.sinks.jsonl import RunDirectory
from tests.report.runs import PANELS, series

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
AXE = Path(os.environ.get("EQTOOLBOX_AXE", "node_modules/axe-core/axe.min.js"))  # axe-core of npm
SMALL = "--window-size=1200,700"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")

Ask = Callable[..., Any]


def browse(address: str, profile: Path, *options: str) -> tuple[str, list[str]]:
    """The page's document after its scripts ran, and what the console said."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", f"--user-data-dir={profile}", "--enable-logging=stderr",
        "--virtual-time-budget=20000", *options, "--dump-dom", address,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture
def ask(rich_page: Path, tmp_path: Path) -> Ask:
    """Run the body of an async function in the page; its result, once nothing was complained of.

    The function finds `$`, which gives an element by its id, and `pause`, which waits.
    """

    def asked(body: str, *options: str, before: str = "", of: Path = rich_page) -> Any:
        page = tmp_path / "asked.html"
        script = f"""<script>{before}</script><script>addEventListener("load", async () => {{
            const refused = [], $ = id => document.getElementById(id);
            const pause = (ms = 300) => new Promise(done => setTimeout(done, ms));
            addEventListener("securitypolicyviolation", event => refused.push(event.blockedURI));
            await pause(500);
            const ask = async () => {{ {body} }};
            const told = await ask().catch(error => ({{ error: `${{error}}` }}));
            const fetched = performance.getEntriesByType("resource").map(entry => entry.name);
            const answer = document.createElement("pre");
            answer.id = "answer";
            answer.textContent = encodeURIComponent(JSON.stringify({{ told, fetched, refused }}));
            document.body.append(answer);
        }});</script></body>"""
        page.write_text(of.read_text().replace("</body>", script))
        found = None
        for _ in range(3):  # the virtual clock does not wait for work outside the page's process
            document, console = browse(page.as_uri(), tmp_path / "profile", *(options or (SMALL,)))
            found = re.search(r'<pre id="answer">([^<]*)</pre>', document)
            if found:
                break
        assert found is not None, "the function did not end"
        answer = json.loads(unquote(found[1]))
        assert (console, answer["fetched"], answer["refused"]) == ([], [], [])
        return answer["told"]

    return asked


def test_all_panels_are_drawn_without_an_error_or_a_request(ask: Ask) -> None:
    told = ask("""drawAll();
        const drawn = id => document.querySelectorAll(`#${id} .main-svg`).length >= 2;
        return places.filter(place => drawn(place.id)).map(place => place.id);""")
    assert set(told) == PANELS


def test_the_browser_check_hears_an_error_and_sees_a_request(ask: Ask) -> None:
    with pytest.raises(AssertionError, match="undefinedFunction is not defined"):
        ask("return 1", before="undefinedFunction()")
    with pytest.raises(AssertionError, match="example"):
        ask("new Image().src = 'http://example.invalid/a.png'; await pause(); return 1")


def test_panels_are_drawn_when_they_come_near(ask: Ask) -> None:
    first, later = ask("""const drawn = () => places.filter(p => p.figure).map(p => p.id);
        const first = drawn();
        $("overhead").scrollIntoView({ behavior: "instant" });
        await pause(1500);
        if (!$("overhead").figure) dispatchEvent(new Event("load"));
        await pause(1500);
        return [first, drawn()];""")
    assert "loss" in first
    assert "overhead" not in first
    assert "overhead" in later
    assert len(later) < len(PANELS)


def test_a_key_hides_its_line_and_shows_it_again(ask: Ask) -> None:
    told = ask("""drawAll();
        const key = document.querySelector('[data-plot="equivariance-relative_error"]');
        const place = $("equivariance-relative_error");
        const lines = () => place.querySelectorAll(".trace").length, told = [lines()];
        for (const _ of [0, 1]) {
            key.click();
            await pause();
            told.push(lines(), key.getAttribute("aria-pressed"));
        }
        return told;""")
    before, hidden, off, again, on = told
    assert hidden < before == again
    assert (off, on) == ("false", "true")


def test_a_log_button_changes_the_axis_and_back(ask: Ask) -> None:
    told = ask("""drawAll();
        const place = $("stability"), told = [];
        const button = place.closest("figure").querySelector(".tools button");
        for (const _ of [0, 1, 2]) {
            told.push([place._fullLayout.yaxis.type, button.getAttribute("aria-pressed")]);
            button.click();
            await pause();
        }
        return told;""")
    assert told == [["linear", "false"], ["log", "true"], ["linear", "false"]]


def test_the_theme_button_changes_page_and_lines(ask: Ask) -> None:
    told = ask("""drawAll();
        const line = () => $("stability").data.find(trace => trace.name).line.color;
        const told = [];
        for (const _ of [0, 1, 2]) {
            $("theme").click();
            await pause();
            drawAll();
            const key = document.querySelector('[data-plot="stability"] svg');
            const paper = getComputedStyle(document.body).backgroundColor;
            told.push([$("theme").textContent, paper, line(), key.getAttribute("stroke")]);
        }
        return told;""")
    (light, paper, blue, key), (dark, night, pale, dark_key), (auto, *_) = told
    assert (light, dark, auto) == ("Theme: light", "Theme: dark", "Theme: auto")
    assert paper != night
    assert (blue, pale) == (key, dark_key)
    assert blue != pale


def test_a_zoom_is_that_of_all_panels_until_it_is_taken_back(ask: Ask) -> None:
    told = ask("""drawAll();
        const range = id => $(id)._fullLayout.xaxis.range.map(Math.round);
        const ids = ["loss", "overlaps"];
        const told = [ids.map(range)];
        await Plotly.relayout("loss", { "xaxis.range[0]": 200, "xaxis.range[1]": 400 });
        drawAll();
        told.push(ids.map(range), $("all-steps").hidden);
        $("all-steps").click();
        drawAll();
        return [...told, ids.map(range), $("all-steps").hidden];""")
    start, zoomed, hidden, end, hidden_again = told
    assert zoomed == [[200, 400], [200, 400]]
    assert start == end
    assert (hidden, hidden_again) == (False, True)


def test_the_cursor_is_at_one_step_in_all_panels(ask: Ask) -> None:
    told = ask("""drawAll();
        visible.add($("overlaps")).add($("loss"));
        const place = $("loss"), { left, top } = place.getBoundingClientRect();
        const axis = place._fullLayout.xaxis, clientX = left + axis._offset + axis.d2p(500);
        place.dispatchEvent(new MouseEvent("mousemove", { clientX, clientY: top + 100 }));
        await pause();
        const step = id => {
            const { rods: [rod], offsetLeft, _fullLayout: { xaxis } } = $(id);
            const at = parseFloat(rod.style.left) - offsetLeft - xaxis._offset;
            return rod.hidden ? null : Math.round(xaxis.p2d(at));
        };
        const shown = [step("loss"), step("overlaps")];
        place.dispatchEvent(new MouseEvent("mouseleave"));
        return [shown, [step("loss"), step("overlaps")]];""")
    (here, there), left = told
    assert here == pytest.approx(500, abs=3)  # a pixel is two steps
    assert there == pytest.approx(here, abs=1)
    assert left == [None, None]


def test_events_are_marked_in_every_panel_over_steps(ask: Ask) -> None:
    told = ask("""drawAll();
        const dotted = place => place.layout.shapes.filter(shape => shape.line.dash === "dot");
        return places.map(place => [place.steps, dotted(place).map(shape => shape.x0)]);""")
    assert sum(steps for steps, _ in told) == len(PANELS) - 1
    for steps, marked in told:
        assert not steps or {410, 600} <= set(marked)
        assert steps or not marked


def test_csv_holds_the_numbers_of_the_panel(ask: Ask) -> None:
    told = ask("""const saved = [];
        window.Blob = class extends Blob {
            constructor(parts, options) { super(parts, options); saved.push(parts[0]); }
        };
        HTMLAnchorElement.prototype.click = function () { saved.push(this.download); };
        const buttons = [...$("stability").closest("figure").querySelectorAll(".tools button")];
        buttons.find(button => button.textContent === "CSV").click();
        return saved;""")
    text, name = told
    rows = text.splitlines()
    assert name == "stability.csv"
    assert rows[0] == "step,stability"
    assert float(rows[1].split(",")[1]) == pytest.approx(0.16, rel=0.2)
    assert len(rows) > 70


def test_png_is_a_picture_of_the_panel(ask: Ask) -> None:
    told = ask("""const saved = [];
        const real = URL.createObjectURL.bind(URL);
        URL.createObjectURL = blob => { saved.push(blob.type, blob.size); return real(blob); };
        HTMLAnchorElement.prototype.click = function () { saved.push(this.download); };
        await picture($("stability"));
        await pause(2000);
        return saved;""")
    assert told[-1] == "run-stability.png"
    assert told[-3] == "image/png"
    assert told[-2] > 5000


def test_paper_shows_everything_within_its_width_and_light(ask: Ask) -> None:
    told = ask("""$("theme").click();
        $("theme").click();
        dispatchEvent(new Event("beforeprint"));
        const right = element => element.getBoundingClientRect().right;
        const edge = right(document.querySelector("main")) + 1;
        const wide = places.filter(p => right(p.querySelector(".main-svg")) > edge);
        const told = [places.every(p => p.figure), wide.map(p => p.id), dark(),
            document.querySelectorAll("details.group:not([open])").length];
        dispatchEvent(new Event("afterprint"));
        return [...told, $("theme").textContent];""")
    assert told == [True, [], False, 0, "Theme: dark"]


def test_many_lines_are_drawn_apart_on_the_same_axes(
    ask: Ask, tmp_path: Path, make_run: Callable[..., Run]
) -> None:
    rows = [
        series(f"noether/first_order/f{i}", [10.0**-i] * 3, floor=2.0 * 10.0**-i) for i in range(7)
    ]
    told = ask(
        """drawAll();
        const place = $("noether-first_order"), { _fullLayout: all, data } = place;
        const axes = Object.keys(all).filter(name => /^yaxis[0-9]*$/.test(name));
        const third = data.filter(trace => trace.yaxis === "y3");
        const alone = third.map(trace => Math.round(Math.log10(trace.y[0])));
        const labels = all.annotations.map(note => note.text);
        const ranges = new Set(axes.map(name => all[name].range.join()));
        return [axes.length, ranges.size, alone, labels];""",
        of=write_page(make_run(*rows), tmp_path / "many.html"),
    )
    count, ranges, alone, labels = told
    assert (count, ranges) == (7, 1)
    assert alone == [-2, -2]  # the third line, and its floor
    assert sum(label.startswith(f"f{i} ") for i in range(7) for label in labels) == 7


def test_a_heat_map_has_its_colours_in_their_places(ask: Ask, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    for step in range(3):
        run.array(step, "conservation/unit_drift/rescale", np.array([0.0, 0.5, -0.5]) * (step == 2))
    run.close()
    told = ask(
        """const painted = [], pen = CanvasRenderingContext2D.prototype;
        pen.fillRect = function (x, y) { painted.push([this.fillStyle, x, y]); };
        const place = $("units-rescale");
        place.note.textContent = cell(place.map, 2.2, 0.9);
        draw(place);
        return [painted, place.note.textContent, place.layout.yaxis.range];""",
        of=write_page(Run(tmp_path / "run"), tmp_path / "map.html"),
    )
    painted, note, (low, high) = told
    assert note == "step 2, unit 1: 50 %"
    assert (low, high) == (2.5, -0.5)  # the first unit on top
    assert len(painted) == 9
    last = [cell for cell in painted if cell[1] == max(x for _, x, _ in painted)]
    assert [y for *_, y in last] == [0, 200, 400]
    none, red, blue = (colour for colour, *_ in last)
    assert float(none.removesuffix(")").split(",")[3]) < 0.15  # nearly transparent
    assert (red, blue) == (PALETTE[1], PALETTE[0])


def test_a_phone_needs_no_sideways_scrolling(rich_page: Path, tmp_path: Path) -> None:
    frame = rich_page.parent / "phone.html"
    frame.write_text(f"""<iframe src="{rich_page.name}" style="width:390px;height:900px"></iframe>
        <script>onload = () => setTimeout(() => {{
            const inner = document.querySelector("iframe"), page = inner.contentDocument;
            inner.contentWindow.drawAll();
            const wide = [...page.querySelectorAll(".plot svg.main-svg")].map(s => s.clientWidth);
            document.title = `${{page.documentElement.scrollWidth}} ${{Math.max(...wide)}}`;
        }}, 3000)</script>""")
    document, _ = browse(frame.as_uri(), tmp_path, "--allow-file-access-from-files")
    frame.unlink()
    page, plot = map(int, re.findall(r"<title>(\d+) (\d+)</title>", document)[0])
    assert page <= 390
    assert 250 < plot <= 350


@pytest.mark.skipif(not AXE.exists(), reason="no axe-core: npm install axe-core")
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_axe_finds_nothing(ask: Ask, scheme: str) -> None:
    body = """drawAll();
        document.querySelectorAll("details").forEach(details => { details.open = true; });
        const { violations } = await axe.run();
        return violations.map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 200)]);"""
    preferred = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    assert ask(body, SMALL, preferred, before=AXE.read_text(encoding="utf-8")) == []
