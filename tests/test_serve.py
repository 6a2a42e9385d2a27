"""`eqtoolbox serve`: what is shown, and what no request and no folder can make it show or do."""

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.report.runs import EVENTS, SYMMETRIES, rich_records, series, write_run

flask = pytest.importorskip("flask")
pytest.importorskip("waitress")

from eqtoolbox.command.serving import loopback  # noqa: E402
from eqtoolbox.report.live import card as cards_module  # noqa: E402
from eqtoolbox.report.live.served import TOGETHER, Pages, served  # noqa: E402
from eqtoolbox.report.live.shelf import DEEP, RunShelf, certain  # noqa: E402

LOSS = series("training/loss", [3.0, 2.0])


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with two runs, a secret beside it and another run outside."""
    root = tmp_path / "runs"
    write_run(root / "first", LOSS)
    write_run(root / "group" / "second", series("training/loss", [9.0]), finished=None)
    write_run(tmp_path / "outside", series("training/loss", [777.25]), model={"class": "Secret"})
    (tmp_path / "secret.txt").write_text("SECRET")
    return root


def client(root: Path, *, judged: bool = True) -> Any:
    app = served(root)
    browser = app.test_client()
    if judged:
        assert browser.get("/").status_code == 200
        app.extensions["cards"].wait()
    return browser


def text(browser: Any, url: str, code: int = 200, **options: Any) -> str:
    answer = browser.get(url, **options)
    assert answer.status_code == code, answer.text
    return str(answer.text)


def test_the_index_shows_every_run_and_what_was_found(runs: Path) -> None:
    violated = series("conservation/closure/rescale", [0.5] * 5, floor=1e-7, verdict="violated")
    write_run(runs / "wrong", [*violated, *LOSS])
    shown = text(client(runs), "/")
    for said in ("first", "group/second", "wrong", "ConvNet", ">3 runs<", "warning", "running"):
        assert said in shown
    assert "777.25" not in shown and "being read" not in shown
    assert shown.index("finished") > 0 and 'data-what="loss" data-sort="9"' in shown


def test_the_loss_is_found_behind_the_many_records_of_a_step(runs: Path) -> None:
    many = [row for i in range(400) for row in series(f"conservation/charge/{i}", [1.0])]
    write_run(runs / "wide", [*series("training/loss", [6.5]), *many])
    assert 'data-what="loss" data-sort="6.5"' in text(client(runs), "/")


def test_before_the_findings_are_made_the_index_is_there(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards_module.Cards, "_begin", lambda self: None)
    shown = text(client(runs, judged=False), "/")
    assert shown.count("being read") == 2 and 'data-what="step" data-sort="10"' in shown


def test_a_run_has_its_page_in_a_frame_and_alone(runs: Path) -> None:
    browser = client(runs)
    frame = text(browser, "/run?of=group/second")
    assert '<iframe src="/page?of=group%2Fsecond"' in frame
    page = text(browser, "/page?of=group/second")
    assert "<h1>second</h1>" in page and "Plotly" in page
    assert "<h1>first</h1>" in text(browser, "/page?of=first")


def test_the_folder_may_be_a_run_itself(tmp_path: Path) -> None:
    home = write_run(tmp_path / "alone", LOSS)
    assert "<h1>alone</h1>" in text(client(home), "/page?of=alone")


def test_runs_are_shown_beside_each_other(runs: Path) -> None:
    browser = client(runs)
    frame = text(browser, "/compare?of=first&of=group/second&of=first")
    assert '<iframe src="/page?of=first&amp;of=group%2Fsecond"' in frame
    page = text(browser, "/page?of=first&of=group/second")
    assert "first and second" in page and "What the runs show" in page
    for many in (0, TOGETHER + 1):
        query = "&".join(f"of={i}" for i in range(many))
        assert f"got {many}" in text(browser, f"/compare?{query}", 400)
    assert "No run" in text(browser, "/compare?of=first&of=nothing", 404)


def test_versions_change_with_the_files_and_are_304_until_then(runs: Path) -> None:
    browser = client(runs)
    answer = browser.get("/versions")
    known, tag = {"If-None-Match": answer.headers["ETag"]}, answer.json
    assert set(tag) == {"first", "group/second"}
    assert browser.get("/versions", headers=known).status_code == 304
    assert browser.get("/versions", headers=known).data == b""
    page = browser.get("/page?of=first").headers["ETag"]
    with (runs / "first" / "records.jsonl").open("a") as file:
        file.write('{"step": 500, "name": "training/loss", "value": 0.125}\n')
    later = browser.get("/versions", headers=known)
    assert later.status_code == 200 and later.json["first"] != tag["first"]
    assert later.json["group/second"] == tag["group/second"]
    seen = browser.get("/page?of=first", headers={"If-None-Match": page})
    assert seen.status_code == 200 and "step 500" in seen.text
    unchanged = {"If-None-Match": seen.headers["ETag"]}
    assert browser.get("/page?of=first", headers=unchanged).status_code == 304
    assert 'data-sort="0.125"' in text(browser, "/")


def test_a_page_is_made_once_as_long_as_its_run_stays_the_same(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eqtoolbox.report.live import served as module

    made: list[str] = []
    monkeypatch.setattr(module, "rendered", lambda shown: made.append(shown["title"]) or "page")
    pages, places = Pages(), RunShelf(runs).places()
    for _ in range(3):
        assert pages.of([places["first"]]) == b"page"
    assert made == ["first"]
    (runs / "first" / "events.jsonl").write_text(json.dumps(EVENTS[0]) + "\n")
    pages.of([RunShelf(runs).places()["first"]])
    assert made == ["first", "first"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("url", ["/", "/versions", "/page?of=first", "/nothing"])
def test_only_get_and_head_are_answered(runs: Path, method: str, url: str) -> None:
    answer = client(runs, judged=False).open(url, method=method)
    assert answer.status_code == 405 and "only reads" in answer.text
    assert set(answer.allow) == {"GET", "HEAD"}


def test_head_has_no_body(runs: Path) -> None:
    answer = client(runs).head("/")
    assert answer.status_code == 200 and answer.data == b""


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:8765", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:8765", 200),
        ("evil.example:8765", 403), ("evil.example", 403), ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403), ("", 403), ("192.168.0.1:8765", 403), ("0.0.0.0", 403),
        ("[::1].evil.example", 403), ("localhost@evil.example", 403),
    ],
)  # fmt: skip
@pytest.mark.parametrize("url", ["/", "/versions", "/page?of=first"])
def test_a_site_whose_name_was_rebound_to_this_machine_gets_nothing(
    runs: Path, host: str, code: int, url: str
) -> None:
    answer = client(runs, judged=False).get(url, headers={"Host": host})
    assert answer.status_code in ({code} if code == 200 else {400, 403})
    assert code == 200 or not re.search("first|ConvNet|runs/", answer.text)


def test_a_page_of_another_site_gets_nothing_but_a_link(runs: Path) -> None:
    browser = client(runs, judged=False)
    for mode, code in {"no-cors": 403, "cors": 403, "navigate": 200}.items():
        headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode}
        assert browser.get("/versions", headers=headers).status_code == code
    headers = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    assert browser.get("/versions", headers=headers).status_code == 200


OUTWARD = (
    "../outside", "first/../../outside", "/etc", "..", ".", "", "first/", "first/.", "./first",
    "%2e%2e/outside", "..%2foutside", "group\\..\\..\\outside", "link", "group", "first\x00",
    "first/records.jsonl", "linked/deep", "~",
)  # fmt: skip


@pytest.mark.parametrize("view", ["run", "page"])
@pytest.mark.parametrize("key", OUTWARD)
def test_nothing_outside_the_folder_can_be_asked_for(runs: Path, key: str, view: str) -> None:
    (runs / "link").symlink_to(runs.parent / "outside")
    (runs / "linked").mkdir()
    (runs / "linked" / "deep").symlink_to(runs.parent / "outside", target_is_directory=True)
    shown = text(client(runs, judged=False), f"/{view}?of={quote(key)}", 404)
    assert "Secret" not in shown and "777.25" not in shown


@pytest.mark.parametrize(
    "path",
    ["/../../secret.txt", "/static/../secret.txt", "/first/records.jsonl", "/template.html.j2",
     "/live.css/../served.py", "/page/first", "/live.html.j2", "/%2e%2e/secret.txt"],
)  # fmt: skip
def test_no_file_is_served_by_its_path(runs: Path, path: str) -> None:
    assert "SECRET" not in text(client(runs, judged=False), path, 404)


def test_files_that_are_links_are_not_read(runs: Path) -> None:
    outside = runs.parent / "outside"
    (runs / "first" / "events.jsonl").unlink()
    (runs / "first" / "events.jsonl").symlink_to(runs.parent / "secret.txt")
    thief = runs / "thief"
    thief.mkdir()
    (thief / "run.json").write_text("{}")
    (thief / "records.jsonl").symlink_to(outside / "records.jsonl")
    browser = client(runs)
    for url in ("/", "/run?of=thief"):
        assert "777.25" not in text(browser, url)
    assert "cannot be read" in text(browser, "/")
    said = text(browser, "/page?of=thief", 500)
    assert "is a link" in said and "777.25" not in said and len(said) < 2000
    assert "SECRET" not in text(browser, "/page?of=first")


def test_a_run_that_became_a_link_after_it_was_found_is_not_followed(runs: Path) -> None:
    place = RunShelf(runs).places()["group/second"]
    assert certain(place) == place.path
    (runs / "group").rename(runs / "moved")
    (runs.parent / "second").symlink_to(runs.parent / "outside")
    (runs / "group").symlink_to(runs.parent)
    with pytest.raises(OSError, match="is a link by now"):
        certain(place)
    with pytest.raises(OSError, match="is a link by now"):
        Pages().of([place])
    assert "is a link by now" in cards_module.judged(place).text


def test_folders_far_below_and_hidden_ones_are_left_out(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*"abcdef"[:DEEP])
    write_run(deep, LOSS)
    write_run(deep / "below", LOSS)
    write_run(tmp_path / ".hidden", LOSS)
    assert list(RunShelf(tmp_path).places()) == ["a/b/c/d/e/f"]


HOSTILE = (
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1)",
    "a\nb", "\x1b[31mred", "{{ 7 * 7 }}", "javascript:alert(1)", "a?b&of=first#c", "%2e%2e",
    "\u202egnp", " ", "\udcff\udcfe",
)  # fmt: skip


def test_hostile_names_and_contents_are_text(tmp_path: Path) -> None:
    for name in HOSTILE:
        clean = name.encode("utf-8", "replace").decode()
        event = {"time": 1.0, "step": 0, "kind": "warning", "probe": clean, "message": clean}
        write_run(tmp_path / "runs" / name, LOSS, model={"class": clean}, events=[event])
    browser = client(tmp_path / "runs")
    keys = list(browser.get("/versions").json)
    assert len(keys) == len(HOSTILE) and "\\udcff\\udcfe" in keys and "a\nb" in keys
    query = "&".join(f"of={quote(key)}" for key in keys)
    pages = [text(browser, "/"), text(browser, f"/compare?{query}")]
    for key in keys:
        pages += [text(browser, f"/{view}?of={quote(key)}") for view in ("run", "page")]
    for shown in pages:
        assert not re.search(r"<script>alert|<img|\sonmouseover='|\x1b|\u202e|>49<", shown)
        assert 'href="javascript' not in shown
    links = re.findall(r'href="(/run\?of=[^"]*)"', pages[0])
    assert len(links) == len(HOSTILE) and all(text(browser, link) for link in links)


def test_every_answer_says_what_a_browser_may_do_with_it(runs: Path) -> None:
    browser = client(runs)
    for url in ("/", "/versions", "/run?of=first", "/page?of=first", "/x", "/live.js", "/live.css"):
        answer = browser.get(url)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "http" not in policy
        assert "frame-ancestors 'self'" in policy if "/page" in url else "'unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in answer.headers
    for url in ("/", "/run?of=first", "/x"):  # nothing inline, which the policy would refuse
        assert not re.search(
            r"<style|<script>|\sstyle=|\son\w+=", text(browser, url, 404 if url == "/x" else 200)
        )


def tree(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(root.rglob("*"))}


def test_nothing_is_written_and_no_code_of_a_run_is_run(runs: Path) -> None:
    code = f"open({str(runs.parent / 'ran')!r}, 'w')"
    for name in ("probes.py", "sitecustomize.py", "conftest.py"):
        (runs / "first" / name).write_text(code)
    info = json.loads((runs / "first" / "run.json").read_text())
    info["probes"] = {"probes.py:P": {"source": "probes.py:P"}}
    (runs / "first" / "run.json").write_text(json.dumps(info))
    before = tree(runs.parent)
    browser = client(runs)
    for url in ("/", "/page?of=first", "/compare?of=first&of=group/second", "/versions"):
        text(browser, url)
    assert tree(runs.parent) == before


def test_an_empty_folder_and_a_wrong_address_help(tmp_path: Path, runs: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "eqtoolbox demo" in text(client(tmp_path / "empty"), "/")
    assert "there are no runs" in text(client(tmp_path / "empty"), "/page?of=x", 404)
    assert "did you mean &#39;first&#39;" in text(client(runs), "/page?of=frist", 404)
    assert 'href="/"' in text(client(runs), "/somewhere", 404)


def test_a_broken_run_leaves_the_others_alone(runs: Path) -> None:
    broken = runs / "broken"
    broken.mkdir()
    (broken / "run.json").write_bytes(b"\xff" * 100)
    (broken / "records.jsonl").mkdir()
    browser = client(runs)
    shown = text(browser, "/")
    assert "The run cannot be read" in shown and ">3 runs<" in shown
    assert len(text(browser, "/page?of=broken", 500)) < 2000


def test_a_growing_run_is_judged_at_leisure(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []
    real = cards_module.judged
    monkeypatch.setattr(cards_module, "judged", lambda p: judged.append(p.key) or real(p))
    browser = client(runs)
    for step in range(3):
        with (runs / "first" / "records.jsonl").open("a") as file:
            file.write(f'{{"step": {100 + step}, "name": "training/loss", "value": 0.5}}\n')
        assert f'data-sort="{100 + step}"' in text(browser, "/")
    browser.application.extensions["cards"].wait()
    assert sorted(judged) == ["first", "group/second"]


def test_the_style_is_that_of_the_page(runs: Path) -> None:
    shown = text(client(runs), "/live.css")
    assert "--paper" in shown and "light-dark(" in shown and "#index" in shown


def test_pages_fetch_nothing_from_elsewhere(runs: Path) -> None:
    browser = client(runs)
    for url in ("/", "/run?of=first", "/live.css", "/live.js", "/x"):
        shown = text(browser, url, 404 if url == "/x" else 200)
        assert not re.search(r"https?://|@import|url\(", shown), url


# A server of its own.


@contextlib.contextmanager
def server(root: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-m", "eqtoolbox", "serve", str(root), *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.match(r"http://127\.0\.0\.1:(\d+)/ shows the runs", said)
            assert found, said + (process.stderr.read() if process.stderr else "")
            yield process, int(found[1])
        finally:
            process.kill()


def test_a_real_server_answers_and_ends_with_ctrl_c(runs: Path) -> None:
    with server(runs, "--port", "0") as (process, port):
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        line.request("GET", "/")
        answer = line.getresponse()
        assert answer.status == 200 and b"group/second" in answer.read()
        assert "Server" not in answer.headers
        for path in ("/../../secret.txt", "/page?of=../outside", "//etc/passwd", "/%2e%2e/etc"):
            line.request("GET", path)  # as it is: no client tidies the path up
            answer = line.getresponse()
            assert answer.status == 404 and b"SECRET" not in answer.read()
        line.request("GET", "/", headers={"Host": "evil.example"})
        answer = line.getresponse()
        assert answer.status == 403 and b"first" not in answer.read()
        line.request("POST", "/", body="x")
        assert line.getresponse().status == 405
        line.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr is not None and process.stderr.read() == ""


def test_only_loopback_addresses_are_listened_on() -> None:
    sockets = loopback(0)
    try:
        hosts = [s.getsockname()[0] for s in sockets]
        assert hosts[0] == "127.0.0.1" and set(hosts) <= {"127.0.0.1", "::1"}
        assert len({s.getsockname()[1] for s in sockets}) == 1
    finally:
        for one in sockets:
            one.close()


def test_a_machine_without_ipv6_is_served_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "AF_INET6", 12_345)
    (one,) = loopback(0)
    assert one.getsockname()[0] == "127.0.0.1"
    one.close()


def test_a_taken_port_is_told_with_what_to_do(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eqtoolbox.command.cli import main

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(runs), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"port {port} is taken" in said and "--port 0" in said


def test_a_folder_that_is_none_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from eqtoolbox.command.cli import main

    assert main(["serve", str(runs / "nowhere")]) == 2
    assert "which is not there" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["serve", str(runs), "--port", "70000"])
    assert "0 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("serve", "flask", "serve"),
        ("serve", "waitress", "serve"),
        ("watch", "rich.console", "live"),
    ],
)
def test_what_has_to_be_installed_is_named(
    runs: Path,
    command: str,
    module: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from eqtoolbox.command.cli import main

    monkeypatch.setitem(sys.modules, module, None)
    assert main([command, str(runs / "first")]) == 2
    assert f'pip install "eqtoolbox[{extra}]"' in capsys.readouterr().err


def test_a_rich_run_is_served(tmp_path: Path) -> None:
    write_run(tmp_path / "rich", rich_records(), events=EVENTS, symmetries=SYMMETRIES)
    browser = client(tmp_path)
    assert "warning and 1 more" in text(browser, "/")
    assert "Drift of conserved charges" in text(browser, "/page?of=rich")
