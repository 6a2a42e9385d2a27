"""Served runs: what a browser on this machine gets to see of a folder of runs, and no more."""

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from eqtoolbox.report import several
from eqtoolbox.report.directory import nearest
from eqtoolbox.report.live.card import Cards
from eqtoolbox.report.live.shelf import Place, RunShelf, certain
from eqtoolbox.report.page import LAYOUT, content, rendered, templates
from eqtoolbox.report.run import Run
from eqtoolbox.report.words import listing

if TYPE_CHECKING:
    from flask import Flask

HOSTS = ("127.0.0.1", "localhost", "[::1]")  # any other name may be one that a site rebound to us
KEPT = 8  # pages, of a few megabytes each
TOGETHER = 12  # runs that are compared at once
_ASSETS = {"live.css": "text/css", "live.js": "text/javascript"}
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
    """The application: an index of all runs, pages of one or several, and versions.

    It answers GET and HEAD to the names of this machine only, writes nothing and runs no code of
    a run. A run is looked up among those that were found below the folder.

    Args:
        root: the folder.

    Raises:
        ImportError: flask is missing.
        NotADirectoryError: there is no such folder.
    """
    try:
        import flask
        from werkzeug.exceptions import HTTPException
    except ImportError as error:
        raise ImportError(f'serve needs {error.name}: pip install "eqtoolbox[serve]"') from error
    shelf, cards, pages, layout = RunShelf(root), Cards(), Pages(), templates()
    app = flask.Flask("eqtoolbox", static_folder=None, template_folder=None)
    app.url_map.merge_slashes = False
    app.extensions["cards"] = cards

    def shown(template: str, **values: Any) -> str:
        return str(layout.get_template(template).render(**values, root=str(shelf.root)))

    def found(asked: Sequence[str]) -> tuple[Place, ...]:
        keys, places = list(dict.fromkeys(asked)), shelf.places()
        if not 1 <= len(keys) <= TOGETHER:
            flask.abort(400, f"Choose 1 to {TOGETHER} runs, got {len(keys)}.")
        for key in keys:
            if key not in places:
                key = key[:200]
                hint = nearest(key, list(places)) if places else "there are no runs"
                flask.abort(404, f"No run is called {key!r}; {hint}.")
        return tuple(places[key] for key in keys)

    @app.before_request
    def only_reads_of_this_machine() -> None:
        host = re.sub(r":\d+$", "", flask.request.environ.get("HTTP_HOST", "").lower())
        if host not in HOSTS:
            flask.abort(403, f"This answers to {listing(list(HOSTS))} only; see ssh -L.")
        come = [flask.request.headers.get(f"Sec-Fetch-{word}", "") for word in ("Site", "Mode")]
        if come[0] == "cross-site" and come[1] != "navigate":
            flask.abort(403, "Another site's page asked for this.")
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
        among = cards.of(shelf.places().values())
        among.sort(key=lambda card: -card.started)
        return tagged(shown("index.html.j2", cards=among))

    @app.get("/versions")
    def versions() -> flask.Response:
        return tagged({card.key: card.version for card in cards.of(shelf.places().values())})

    @app.get("/run")
    @app.get("/compare")
    def frame() -> flask.Response:
        places = found(flask.request.args.getlist("of"))
        query = urlencode([("of", place.key) for place in places])
        return tagged(shown("frame.html.j2", cards=cards.of(places), page=f"/page?{query}"))

    @app.get("/page")
    def page() -> flask.Response:
        places = found(flask.request.args.getlist("of"))
        answer = flask.Response(pages.of(places), mimetype="text/html")
        answer.headers["Content-Security-Policy"] = _OF_A_PAGE
        answer.set_etag(_version(places))
        return answer

    @app.get("/<any('live.css', 'live.js'):name>")
    def asset(name: str) -> flask.Response:
        before = ["style.css"] if name == "live.css" else []  # that of the page, which all share
        texts = [(LAYOUT / part).read_text("utf-8") for part in (*before, name)]
        return tagged("\n".join(texts), _ASSETS[name])

    def tagged(content: str | dict[str, str], kind: str = "text/html") -> flask.Response:
        plain = isinstance(content, str)
        answer = flask.Response(content, mimetype=kind) if plain else flask.jsonify(content)
        answer.add_etag()
        return answer

    return app


class Pages:
    """Pages of a run or of several, made when asked for and kept until a file of theirs changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # one page is made at a time
        self._kept: OrderedDict[tuple[str, ...], tuple[str, bytes]] = OrderedDict()

    def of(self, places: Sequence[Place]) -> bytes:
        """The page of one run, or that of several beside each other.

        Raises:
            OSError, ValueError: a run cannot be read.
        """
        keys, now = tuple(place.key for place in places), _version(places)
        with self._lock:
            version, made = self._kept.pop(keys, ("", b""))
            if version != now:
                runs = [Run(certain(place)) for place in places]
                one = len(runs) == 1
                made = rendered(content(runs[0]) if one else several.content(runs)).encode()
            self._kept[keys] = now, made
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return made


def _version(places: Sequence[Place]) -> str:
    return "-".join(place.version for place in places)
