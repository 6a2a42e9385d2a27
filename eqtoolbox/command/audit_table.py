"""The audit as a table for the terminal, with its causes below, and as JSON values."""

import textwrap
from typing import Any

from eqtoolbox.symmetry.asymmetry import DataAsymmetry
from eqtoolbox.symmetry.audit import Audit
from eqtoolbox.symmetry.candidates import Score
from eqtoolbox.symmetry.culprit import summary

_WIDTH = 100  # characters of a terminal
_LAYER = 20  # of a layer's name


def text(found: Audit) -> str:
    """A row a candidate, then each cause once, and the continuous symmetries.

    Example:
        >>> from torch import nn, ones
        >>> from eqtoolbox.symmetry.audit import audit
        >>> print(text(audit(nn.Flatten(), ones(2, 2))).split()[:2])
        ['candidate', 'model']
    """
    wide = max([len("candidate"), *(len(s.symmetry.name) for s in found.scores)])
    head = f"{'candidate':{wide}}  {'model':10} {'error':>8} {'floor':>8}"
    lines = [f"{head}  {'data':10} {'distance':>8}  first broken at"]
    causes: dict[str, list[str]] = {}
    for score in found.scores:
        name = score.symmetry.name
        lines.append(f"{name:{wide}}  {_row(score, found)}".rstrip())
        why = _why(score, found)
        if why:
            causes.setdefault(why, []).append(name)
    for why, names in causes.items():
        lines += ["", *textwrap.wrap(f"{', '.join(names)}: {why}", _WIDTH, subsequent_indent="  ")]
    if found.algebra is not None:
        a = found.algebra
        known = a.name or a.note
        lines += ["", f"continuous: {known} (gap {a.gap:.2g}, shuffled {a.null_gap:.2g})"]
    return "\n".join(lines)


def data(found: Audit) -> list[dict[str, Any]]:
    """The audit as JSON values, in rank order, with all numbers and the whole causes."""
    rows = []
    for score in found.scores:
        r, name = score.result, score.symmetry.name
        blamed = found.culprits.get(name)
        numbers = {}
        if r is not None:
            numbers = {
                "relative_error": r.relative_error,
                "floor": r.floor,
                "stderr": r.stderr,
                "orbit_variance": r.orbit_variance,
            }
        rows.append(
            {
                "candidate": name,
                "verdict": r.verdict if r else "not_applicable",
                **_of_data(found.data.get(name)),
                **{k: v if v == v and abs(v) != float("inf") else None for k, v in numbers.items()},
                **({"parts": dict(r.parts)} if r is not None and r.parts else {}),
                "first_broken": None if blamed is None else blamed.layer,
                "note": _why(score, found),
            }
        )
    return rows


def _row(score: Score, found: Audit) -> str:
    r, name = score.result, score.symmetry.name
    if r is None:
        return "not applicable"
    row = f"{r.verdict:10} {r.relative_error:8.2g} {r.floor:8.1g}"
    d = found.data.get(name)
    row += f"  {'-':10} {'':8}" if d is None else f"  {d.verdict:10} {d.coefficient:8.2g}"
    blamed = found.culprits.get(name)
    layer = "" if blamed is None else blamed.layer or "no layer"
    return f"{row}  {textwrap.shorten(layer, _LAYER, placeholder='...')}"


def _why(score: Score, found: Audit) -> str:
    blamed = found.culprits.get(score.symmetry.name)
    return (summary(blamed) if blamed is not None else "") or score.note


def _of_data(d: DataAsymmetry | None) -> dict[str, Any]:
    if d is None:
        return {}
    return {
        "data_verdict": d.verdict,
        "data_distance": d.coefficient,
        "data_floor": d.floor,
        "data_p_value": d.p_value,
    }
