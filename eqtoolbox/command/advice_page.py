"""The page of suggestions: what to build in, what it buys, what the data refuse, what breaks it."""

from importlib.metadata import version
from typing import Any

import torch

from eqtoolbox.choose.suggestion import Suggestions, said
from eqtoolbox.report.contrasts import table
from eqtoolbox.report.drawing import GREY, PALETTE
from eqtoolbox.report.figures import Panel
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.words import number

_COLOURS = {"gains": PALETTE[0], "none": GREY, "loses": PALETTE[1]}
_WORDS = {"gains": "gains", "none": "within noise", "loses": "loses"}


def content(found: Suggestions, title: str) -> dict[str, Any]:
    """Everything that the template of a report shows, as plain values."""
    best = found.best
    findings = [
        Finding(
            level="good" if best else "note",
            text=found.verdict(),
            remedy=(f"{best.call}, of this model and claim",) if best else (),
        ),
        *(Finding(level="note", text=f"{note}.") for note in found.notes),
    ]
    return {
        "title": title,
        "heading": "What is suggested",
        "verdict": found.verdict(),
        "facts": [
            ("samples", f"{found.samples:,}"),
            ("weights", f"{found.plain_weights:,}"),
            (f"{found.unit} as it is", said(found.unit, found.plain) or "not asked"),
        ],
        "findings": findings[:1],
        "more": findings[1:],
        "good": [],
        "loss": None,
        "sections": [part for part in (_gains(found), _data(found), _layers(found)) if part],
        "costs": None,
        "events": [],
        "happened": None,
        "left_out": 0,
        "values": [],
        "versions": f"eqtoolbox {version('eqtoolbox')} · torch {torch.__version__}",
    }


def _gains(found: Suggestions) -> dict[str, Any] | None:
    tried = [row for row in found if row.gain is not None]
    if not tried:
        return None
    columns = (
        "claim", "way", "outcome", "gain", found.decided, found.unit, "free weights", "evidence",
    )  # fmt: skip
    rows = [[*found.cells(row)[:7], found.cells(row)[8]] for row in tried]
    plain = said(found.unit, found.plain)
    rows.append(["as it is", "", "", "", "", plain, f"{found.plain_weights:,}", _short(found)])
    return {
        "slug": "gains",
        "question": "What does each symmetry buy?",
        "explanation": (
            "Networks with a symmetry and without, trained alike from fresh weights at about equal "
            "numbers of free weights, and judged on samples that were held out. Errors count that "
            "trainings share samples. Evidence, in nats a sample, is a second opinion and never "
            "one of its own: of very small networks it is near that of an underfit."
        ),
        "panels": [_figure(found)],
        "tables": [
            table("", columns, rows),
            table(
                "Calls that build them, of model, claim and two samples",
                ("claim", "way", "call"),
                [[row.claim.name, row.way, row.call] for row in tried],
                folded=True,
            ),
        ],
    }


def _short(found: Suggestions) -> str:
    return "" if found.plain_evidence is None else f"{found.plain_evidence:.2f}"


def _figure(found: Suggestions) -> Panel:
    tried = [row for row in found if row.decides is not None][::-1]
    data = []
    for outcome, colour in _COLOURS.items():
        some = [row for row in tried if row.outcome == outcome and row.decides is not None]
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": _WORDS[outcome],
                "x": [row.decides.value for row in some if row.decides],
                "y": [f"{row.claim.name}, {row.way}" for row in some],
                "error_x": {
                    "type": "data", "thickness": 1.5, "width": 0,
                    "array": [r.decides.quantile * r.decides.stderr for r in some if r.decides],
                },
                "marker": {"color": colour, "size": 9},
            }
        )  # fmt: skip
    labels = [f"{row.claim.name}, {row.way}" for row in tried]
    layout = {
        "xaxis": {"title": {"text": found.decided}, "zeroline": True},
        "yaxis": {"categoryorder": "array", "categoryarray": labels, "automargin": True},
        "height": 120 + 28 * len(tried),
    }
    return Panel(
        slug="gain",
        title="Held-out gain",
        reading="Right of zero is better than the model as it is; bars are 95 % intervals.",
        figure={"data": data, "layout": layout},
    )


def _data(found: Suggestions) -> dict[str, Any]:
    rows, seen = [], set()
    for row in found:
        if row.claim.name in seen:
            continue
        seen.add(row.claim.name)
        asked, model = row.data, row.model
        rows.append(
            [
                row.claim.name,
                row.outcome if row.outcome in ("refused", "kept", "not tried") else "allowed",
                number(asked.p_value) if asked else "",
                number(asked.coefficient) if asked else "",
                model.verdict if model else "",
                number(model.relative_error) if model else "",
                row.note,
            ]
        )
    columns = ("claim", "gate", "p", "distance", "model", "model's error", "why")
    return {
        "slug": "data",
        "question": "Which symmetries do the data allow?",
        "explanation": (
            "Inputs and targets together are compared with their moved selves; p is the share of "
            "random exchanges that are as far apart, and 0.01 or less refuses. Few samples look "
            "symmetric easily: passing proves nothing."
        ),
        "tables": [table("", columns, rows)],
    }


def _layers(found: Suggestions) -> dict[str, Any] | None:
    if not found.mends:
        return None
    rows = [
        [m.claim, m.layer, m.cause, m.words, m.code, "yes" if m.tried else "no"]
        for m in found.mends
    ]
    columns = ("claim", "layer", "why it breaks it", "what would mend it", "call", "tried")
    return {
        "slug": "layers",
        "question": "Which layers break them?",
        "explanation": (
            "Of the model as given, layer by layer. A mend that was tried was made on a copy, "
            "where the layer then broke nothing and the next could be looked at."
        ),
        "tables": [table("", columns, rows)],
    }
