"""A comparison: what two or more runs show side by side, and what of it is a difference."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from eqtoolbox.record.record import HOLDS
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.run import Run
from eqtoolbox.report.selection import LEVELS, about, selected
from eqtoolbox.report.terminal import paragraph
from eqtoolbox.report.trace import trace
from eqtoolbox.report.words import listing, number, percent, plural, printable

NAME = 28  # letters of a run's name in the table


def comparison_data(runs: Sequence[Run], *, only: Sequence[str] = ()) -> dict[str, Any]:
    """The median of the last five measurements of every name, run by run, and the findings.

    Values a and b differ where |a - b| > 3 sqrt(e_a^2 + e_b^2). The error e is what was recorded
    (standard error, residual or noise floor) or the scatter of the five over the root of their
    number, whichever is larger; a single measurement without an error has none, and then every
    difference counts. Differences are to the first run.

    Args:
        runs: two or more.
        only: as in `summary_data`.

    Raises:
        KeyError: one of `only` is a name of no run.

    Returns:
        runs (path, name, model, last_step), values (by name: values, errors, differences, within,
        differs; one entry a run, None where it has no number) and findings (level, text, runs:
        the numbers of those that have it, numbers in the text not compared).
    """
    return {
        "runs": [
            {
                "path": str(run.path),
                "name": name,
                "model": (run.info.get("model") or {}).get("class"),
                "last_step": run.last_step,
            }
            for run, name in zip(runs, labels(runs), strict=True)
        ],
        "values": values(runs, only),
        "findings": [
            {"level": first(of).level, "text": first(of).text, "runs": list(of)}
            for of in shared(runs, only)
        ],
    }


def values(runs: Sequence[Run], only: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The values of `comparison_data`: what each name is in every run, and whether it differs."""
    names = selected(list(dict.fromkeys(n for run in runs for n in run.names())), only)
    return {name: _row(runs, name) for name in names}


def comparison_text(data: dict[str, Any], *, every: bool = False, top: int | None = None) -> str:
    """What `comparison_data` returned, for a terminal.

    Args:
        data: the comparison.
        every: also the names that do not differ.
        top: at most so many names.
    """
    runs, rows = data["runs"], data["values"]
    names = [run["name"] for run in runs]
    parts = [
        "\n".join(f"{r['name']}: {r['model'] or 'run'} to step {r['last_step']}" for r in runs)
    ]
    if len({r["last_step"] for r in runs}) > 1:
        parts.append("The runs end at different steps; each value is of the end of its own run.")
    found = [
        paragraph(f["level"], f"{listing([names[i] for i in f['runs']])}: {f['text']}")
        for f in data["findings"]
        if len(f["runs"]) < len(runs)
    ]
    parts.append("\n".join(["Findings that not all have:", *found] if found else [_SAME]))
    shown = {n: row for n, row in rows.items() if every or row["differs"]}
    left = len(shown) - len(dict(list(shown.items())[:top]))
    shown = dict(list(shown.items())[:top])
    if shown:
        parts.append(_table(names, shown))
    told = [f"{plural(left, 'name')} more" if left else ""]
    alike = sum(not row["differs"] for row in rows.values())
    if alike and not every:
        verb = "does not differ" if alike == 1 else "do not differ"
        told.append(f"{plural(alike, 'name')} {verb} beyond the errors (--all shows all)")
    if any(told):
        parts.append("; ".join(filter(None, told)))
    return printable("\n\n".join(parts))


_SAME = "The findings are the same, but for their numbers."


def labels(runs: Sequence[Run]) -> list[str]:
    """What each run is called: the name of its directory, with parents where names are the same."""
    paths = [run.path.resolve().parts for run in runs]
    names, count = [parts[-1] for parts in paths], 1
    while len(set(names)) < len(set(paths)):
        count += 1
        names = ["/".join(parts[-count:]) for parts in paths]
    names = [printable(n) for n in names]
    names = [n if len(n) <= NAME else f"...{n[-NAME + 3 :]}" for n in names]
    return [f"{n} ({names[:i].count(n) + 1})" if n in names[:i] else n for i, n in enumerate(names)]


def _row(runs: Sequence[Run], name: str) -> dict[str, Any]:
    now: list[float | None] = []
    errors: list[float | None] = []
    for run in runs:
        t = trace(run, name)
        recent = np.array([r.value for r in t.recent]) if t is not None else np.zeros(0)
        scatter = float(recent.std(ddof=1)) / math.sqrt(len(recent)) if len(recent) > 1 else 0.0
        known = max(t.error, scatter) if t is not None else 0.0
        told = t is not None and (len(recent) > 1 or known > 0)
        now.append(None if t is None else t.now)
        errors.append(known if told and math.isfinite(known) else None)
    pairs = [_difference(now[0], v, errors[0], e) for v, e in zip(now, errors, strict=True)]
    return {
        "values": now,
        "errors": errors,
        "differences": [d for d, _ in pairs],
        "within": [w for _, w in pairs],
        "differs": any(w is False for _, w in pairs) or len({v is None for v in now}) > 1,
    }


def _difference(
    a: float | None, b: float | None, e: float | None, f: float | None
) -> tuple[float | None, bool | None]:
    """b - a, and whether it lies within the errors; None where one has no number."""
    if a is None or b is None:
        return None, None
    return b - a, abs(b - a) <= HOLDS * math.hypot(e or 0.0, f or 0.0)


def shared(runs: Sequence[Run], only: Sequence[str] = ()) -> list[dict[int, Finding]]:
    """Findings by the numbers of the runs that have them, the gravest first.

    Findings of one level are the same when their texts are, numbers in them not compared.
    """
    found: dict[tuple[str, str], dict[int, Finding]] = {}
    for place, run in enumerate(runs):
        for f in about(run.findings(), only):
            key = f.level, re.sub(r"-?\d[\d.]*(e-?\d+)?", "#", f.text)
            found.setdefault(key, {}).setdefault(place, f)
    return sorted(found.values(), key=lambda of: -LEVELS.index(first(of).level))


def first(of: dict[int, Finding]) -> Finding:
    """The finding as the first of the runs that have it says it."""
    return next(iter(of.values()))


def _table(labels: Sequence[str], values: dict[str, dict[str, Any]]) -> str:
    rows = [("name", *labels, "difference", "±")]
    for name, row in values.items():
        cells = ["-" if v is None else number(v) for v in row["values"]]
        told = [_told(row, i) for i in range(1, len(labels))]
        errors = [e for e in row["errors"] if e is not None]
        least = number(HOLDS * math.hypot(*errors), 2) if errors else ""
        rows.append((name, *cells, ", ".join(told), least))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _told(row: dict[str, Any], place: int) -> str:
    first, other = row["values"][0], row["values"][place]
    if first is None or other is None:
        return "none" if first is other else "no number"
    return "none" if row["within"][place] else changed(row, place)


def changed(row: dict[str, Any], place: int) -> str:
    """By how much the value of a run differs from that of the first, relative where that tells."""
    first, change = row["values"][0], row["differences"][place]
    if first == 0 or abs(change) > 10 * abs(first):
        return f"{'+' if change > 0 else ''}{number(change)}"
    return f"{'+' if change > 0 else ''}{percent(change / abs(first))}"
