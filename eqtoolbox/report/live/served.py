"""Served runs: what a browser on this machine gets to see of a folder of runs, and no more."""

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqtoolbox.report.comparison import comparison_data
from eqtoolbox.report.directory import nearest
from eqtoolbox.report.live.card import Cards
from eqtoolbox.report.live.shelf import Place, Shelf, certain
from eqtoolbox.report.page import environment, page
from eqtoolbox.report.run import Run
from eqtoolbox.report.words import listing, number, percent

if TYPE_CHECKING:
    from flask import Flask

HOSTS = ("127.0.0.1", "localhost", "[::1]")  # any other name may be one that a site rebound to us
KEPT = 8  # pages, of a few megabytes each
TOGETHER = 12  # runs that are compared at once
_ASSETS = {"live.css": "text/css", "live.js": "text/javascript"}
_HERE = Path(__file__).parents[1]  # of the templates
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src data:; connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
}
_OF_A_PAGE = (  # which holds its style and script, and may be framed by the view of its run
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)


def served(root: Path) -> "Flask":
    """The application: an index of all runs, a page for each, a comparison, and their versions.

    It answers GET and HEAD to the names of this machine only, writes nothing and runs no code of
    a run. A run is looked up among those that were found below the folder.

    Args:
        root: the folder.

    Raises:
        ImportError: flask, jinja2 or plotly is missing.
        NotADirectoryError: there is no such folder.
    """
    try:
        import flask
        from werkzeug.exceptions import HTTPException
    except ImportError as error:
        raise ImportError(f'serve needs {error.name}: pip install "eqtoolbox[serve]"') from error
    shelf, cards, pages, templates = Shelf(root), Cards(), Pages(), environment()
    app = flask.Flask("eqtoolbox", static_folder=None, template_folder=None)
    app.url_map.merge_slashes = False
    app.extensions["cards"] = cards

    def shown(template: str, **values: Any) -> str:
        return str(templates.get_template(template).render(**values, root=str(shelf.root)))

    def found(keys: Sequence[str]) -> list[Place]:
        places = shelf.places()
        for key in keys:
            if key not in places:
                key = key[:200]
                hint = nearest(key, list(places)) if places else "there are no runs"
                flask.abort(404, f"No run is called {key!r}; {hint}.")
        return [places[key] for key in keys]

    @app.before_request
    def only_reads_of_this_machine() -> None:
        host = re.sub(r":\d+$", "", flask.request.environ.get("HTTP_HOST", "").lower())
        if host not in HOSTS:
            flask.abort(403, f"This answers to {listing(list(HOSTS))} only; see ssh -L.")
        if flask.request.method not in ("GET", "HEAD"):
            flask.abort(405, ["GET", "HEAD"], description="This only reads: GET and HEAD.")

    @app.after_request
    def guarded(answer: flask.Response) -> flask.Response:
        for name, value in _ALWAYS.items():
            answer.headers.setdefault(name, value)
        if answer.status_code == 200:
            answer.make_conditional(flask.request)  # 304 where the browser has it
        return answer

    @app.errorhandler(HTTPException)
    def said(error: HTTPException) -> flask.Response:
        text = shown("said.html.j2", title=error.name, text=error.description or error.name)
        answer = flask.Response(text, error.code)
        answer.allow.update(getattr(error, "valid_methods", None) or ())
        return answer

    @app.errorhandler(Exception)
    def failed(error: Exception) -> tuple[str, int]:
        why = getattr(error, "strerror", None) or error
        text = f"{type(error).__name__}: {str(why)[:300]}"
        return shown("said.html.j2", title="The run cannot be shown", text=text), 500

    @app.get("/")
    def index() -> flask.Response:
        return tagged(shown("index.html.j2", cards=cards.of(shelf.places().values())))

    @app.get("/versions")
    def versions() -> flask.Response:
        return tagged({card.key: card.version for card in cards.of(shelf.places().values())})

    @app.get("/run")
    def run() -> flask.Response:
        (place,) = found([flask.request.args.get("of", "")])
        (card,) = cards.of([place])
        return tagged(shown("run.html.j2", card=card))

    @app.get("/page")
    def page_of_a_run() -> flask.Response:
        (place,) = found([flask.request.args.get("of", "")])
        answer = flask.Response(pages.of(place), mimetype="text/html")
        answer.headers["Content-Security-Policy"] = _OF_A_PAGE
        answer.set_etag(place.version)
        return answer

    @app.get("/compare")
    def compare() -> flask.Response:
        keys = list(dict.fromkeys(flask.request.args.getlist("of")))
        if not 2 <= len(keys) <= TOGETHER:
            flask.abort(400, f"Choose 2 to {TOGETHER} runs to compare, got {len(keys)}.")
        runs = [Run(certain(place)) for place in found(keys)]
        return tagged(shown("compare.html.j2", keys=keys, **compared(runs)))

    @app.get("/<any('live.css', 'live.js'):name>")
    def asset(name: str) -> flask.Response:
        text = (_HERE / name).read_text("utf-8")
        return tagged(style() + text if name == "live.css" else text, _ASSETS[name])

    def tagged(content: str | dict[str, str], kind: str = "text/html") -> flask.Response:
        plain = isinstance(content, str)
        answer = flask.Response(content, mimetype=kind) if plain else flask.jsonify(content)
        answer.add_etag()
        return answer

    return app


class Pages:
    """The pages of runs, made when they are asked for and kept until a file of the run changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # one page is made at a time
        self._kept: OrderedDict[str, tuple[str, bytes]] = OrderedDict()

    def of(self, place: Place) -> bytes:
        """The page of a run.

        Raises:
            OSError, ValueError: the run cannot be read.
        """
        with self._lock:
            version, made = self._kept.pop(place.key, ("", b""))
            if version != place.version:
                made = page(Run(certain(place))).encode()
            self._kept[place.key] = place.version, made
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return made


def style() -> str:
    """The style of the page of a run, which all pages share."""
    text = (_HERE / "template.html.j2").read_text("utf-8")
    return text.partition("<style>")[2].partition("</style>")[0]


def compared(runs: Sequence[Run]) -> dict[str, Any]:
    """Runs side by side as plain values: what differs beyond the errors, then the others."""
    data = comparison_data(runs)
    rows = [
        {
            "name": name,
            "values": ["" if v is None else number(v) for v in row["values"]],
            "changes": ["", *(_change(row, i) for i in range(1, len(runs)))],
            "differs": row["differs"],
        }
        for name, row in data["values"].items()
    ]
    findings = [f for f in data["findings"] if len(f["runs"]) < len(runs)]
    return {"runs": data["runs"], "rows": rows, "findings": findings}


def _change(row: dict[str, Any], place: int) -> str:
    """How far a run is from the first one; nothing within the errors."""
    first, change = row["values"][0], row["differences"][place]
    if change is None or row["within"][place]:
        return ""
    size = (
        percent(change / abs(first)) if first and abs(change) < 10 * abs(first) else number(change)
    )
    return f"{'+' if change > 0 else ''}{size}"
