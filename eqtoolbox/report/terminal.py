"""The summary: findings and latest values of a run, as text for a terminal or as strict JSON."""

import math
import textwrap
from typing import Any

from eqtoolbox.report.run import Run
from eqtoolbox.report.trace import drift, judged, trace
from eqtoolbox.report.words import number, printable

WIDTH = 100
_ARROWS = {"up": "↗", "down": "↘", "flat": "→", None: ""}
_LABELS = {"alarm": "ALARM", "warning": "WARNING", "note": "note", "good": "good"}
_COLUMNS = ("name", "last", "median", "trend", "floor", "state")


def summary_text(run: Run) -> str:
    """Findings, then one line a name: last value, median of the last five, trend, floor, state.

    The state is the verdict where there is one, and the status when the last attempt gave no
    number. The trend is that of all certified values (Mann-Kendall test, |z| >= 2).
    """
    data = summary_data(run)
    state = "" if data["finished"] else ", not closed"
    parts = [f"{data['model'] or 'run'} to step {data['last_step']}{state}, {data['path']}"]
    findings = [paragraph for f in data["findings"] for paragraph in _finding(f)]
    parts.append("\n".join(findings) if findings else "no finding")
    if data["values"]:
        parts.append(_table(data["values"]))
    return printable("\n\n".join(parts)) + "\n"


def summary_data(run: Run) -> dict[str, Any]:
    """The same as plain values that `json.dumps(..., allow_nan=False)` takes.

    Returns:
        path, model, optimizer, last_step, finished (unix seconds or None), torn, findings
        (level, text, evidence, id of a disease, cause, where, remedy, began) and values: by name last, step, stderr, median, trend
        ("up", "down", "flat" or None), floor, verdict, status, note. What was never certified
        is None.
    """
    optimizer = run.info.get("optimizer") or {}
    return {
        "path": str(run.path),
        "model": (run.info.get("model") or {}).get("class"),
        "optimizer": optimizer.get("class"),
        "last_step": run.last_step,
        "finished": run.info.get("finished"),
        "torn": run.torn,
        "findings": [
            {
                "level": finding.level,
                "text": finding.text,
                "id": finding.id,
                "cause": finding.cause,
                "where": finding.where,
                "remedy": list(finding.remedy),
                "began": finding.step,
                "evidence": [
                    {"name": e.name, "step": e.step, "value": _strict(e.value), "points": e.points}
                    for e in finding.evidence
                ],
            }
            for finding in run.findings()
        ],
        "values": {name: _row(run, name) for name in run.names()},
    }


def _row(run: Run, name: str) -> dict[str, Any]:
    newest, t = run.rows(name)[-1], trace(run, name)
    row: dict[str, Any] = dict.fromkeys(("last", "stderr", "median", "trend", "floor", "verdict"))
    if t is not None:
        direction = {1: "up", -1: "down", 0: "flat"}[drift(t.values)]
        row["last"], row["median"] = _strict(t.last.value), _strict(t.now)
        row["stderr"], row["floor"] = _strict(t.last.stderr), _strict(t.last.floor)
        row["trend"] = direction if len(t.records) >= 4 else None
        row["verdict"] = judged(t.last)
    step = newest.step if t is None else t.last.step
    return row | {"step": step, "status": newest.status, "note": newest.note}


def _strict(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _finding(finding: dict[str, Any]) -> list[str]:
    """What is said, and below what is wrong what to try."""
    tried = f"Try: {'; '.join(finding['remedy'])}."
    said = [_paragraph(_LABELS[finding["level"]], finding["text"])]
    return [*said, _paragraph("", tried)] if finding["remedy"] else said


def _paragraph(word: str, text: str) -> str:
    label = f"{word:<9}"
    return textwrap.fill(
        text,
        width=WIDTH,
        initial_indent=label,
        subsequent_indent=" " * len(label),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _table(values: dict[str, dict[str, Any]]) -> str:
    rows = [_COLUMNS]
    for name, row in values.items():
        last, median, floor = (
            "" if row[field] is None else number(row[field])
            for field in ("last", "median", "floor")
        )
        missed = row["status"] != "ok"
        state = row["status"].replace("_", " ") if missed else (row["verdict"] or "ok")
        rows.append((name, last, median, _ARROWS[row["trend"]], floor, state))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = []
    for name, last, median, trend, floor, state in rows:
        cells = [name.ljust(widths[0]), last.rjust(widths[1]), median.rjust(widths[2])]
        cells += [trend.center(widths[3]), floor.rjust(widths[4]), state]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
