"""The summary: findings and latest values of a run, as text for a terminal or as strict JSON."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from eqtoolbox.report.run import Run
from eqtoolbox.report.selection import about, selected
from eqtoolbox.report.trace import drift, judged, trace
from eqtoolbox.report.words import number, printable

WIDTH = 100
_ARROWS = {"up": "↗", "down": "↘", "flat": "→", None: ""}
_LABELS = {"alarm": "ALARM", "warning": "WARNING", "note": "note", "good": "good"}
_COLUMNS = ("name", "last", "median", "trend", "floor", "state")


def summary_text(run: Run, *, only: Sequence[str] = (), top: int | None = None) -> str:
    """Findings, then one line a name: last value, median of the last five, trend, floor, state.

    The state is the verdict where there is one, and the status when the last attempt gave no
    number. The trend is that of all certified values (Mann-Kendall test, |z| >= 2).

    Args, Raises: as `summary_data`.
    """
    return as_text(summary_data(run, only=only, top=top))


def as_text(data: dict[str, Any]) -> str:
    """What `summary_data` returned, for a terminal."""
    state = "" if data["finished"] else ", not closed"
    parts = [f"{data['model'] or 'run'} to step {data['last_step']}{state}, {data['path']}"]
    findings = [paragraph for f in data["findings"] for paragraph in _finding(f)]
    parts.append("\n".join(findings) if findings else "no finding")
    parts.append(_table(data["values"]) if data["values"] else "no record")
    if data["left_out"]:
        parts.append(f"{data['left_out']} more findings and names are left out")
    return printable("\n\n".join(parts)) + "\n"


def summary_data(run: Run, *, only: Sequence[str] = (), top: int | None = None) -> dict[str, Any]:
    """The same as plain values that `json.dumps(..., allow_nan=False)` takes.

    Args:
        run: what was recorded.
        only: names, what they begin with ("curvature", "conservation/drift"), or patterns
            ("*/rescale"): only these, and the findings that rest on them.
        top: at most so many findings, the gravest, and so many names: first those whose law is
            violated or that have no number, then those that rise or fall.

    Raises:
        KeyError: one of `only` is no name of this run.

    Returns:
        path, model, optimizer, last_step, finished (unix seconds or None), torn, findings
        (level, text, evidence, id of a disease, cause, where, remedy, began) and values: by name
        last, step, stderr, median, trend ("up", "down", "flat" or None), floor, verdict, status,
        note. What was never certified is None. left_out: how many findings and names `top`
        leaves out.
    """
    values = {name: _row(run, name) for name in selected(run.names(), only)}
    findings = about(run.findings(), only)
    every = len(values) + len(findings)
    if top is not None:
        first = sorted(values, key=lambda name: _urgency(values[name]))[:top]
        values, findings = {name: values[name] for name in first}, findings[:top]
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
            for finding in findings
        ],
        "values": values,
        "left_out": every - len(values) - len(findings),
    }


def _urgency(row: dict[str, Any]) -> int:
    """0 for what wants to be looked at first."""
    if row["status"] not in ("ok", "not_applicable"):
        return 1
    urgent = {"violated": 0, "unresolved": 2, "trivial": 2}
    return int(urgent.get(row["verdict"], 3 if row["trend"] in ("up", "down") else 4))


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
    said = [paragraph(finding["level"], finding["text"])]
    return [*said, paragraph("", tried)] if finding["remedy"] else said


def paragraph(level: str, text: str) -> str:
    """A text behind its level, wrapped."""
    label = f"{_LABELS.get(level, ''):<9}"
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
