"""Advice: the suggestions that a configuration asks for, with its options, and as JSON values.

[audit]
source = "mine.py:build"          # build() -> (model, inputs, targets); further keys as for audit
[suggest]                         # all of it may be left out
ways = ["averaged", "tied"]       # as in eqtoolbox.suggest, and so are the others
steps = 300
folds = 5
repeats = 2
infer = true
seconds = 60.0
seed = 0
"""

from pathlib import Path
from typing import Any

from eqtoolbox.attach.toml import tables
from eqtoolbox.choose.suggesting import suggest
from eqtoolbox.choose.suggestion import Suggestion, Suggestions
from eqtoolbox.command.subject import load

_OPTIONS = ("ways", "steps", "folds", "repeats", "infer", "seconds", "seed")


def advised(config: Path) -> Suggestions:
    """What `suggest` finds for the model and data that a configuration names.

    Raises:
        ValueError: file, table or key missing or unknown, or no targets; says the remedy.
    """
    asked, subject = options(config), load(config)
    if subject.targets is None:
        raise ValueError(
            f"{config}: audit.source must return (model, inputs, targets): what a symmetry buys is "
            "asked of targets"
        )
    found: Suggestions = suggest(
        subject.model, subject.inputs, subject.targets, claims=subject.claims, **asked
    )
    return found


def options(config: Path) -> dict[str, Any]:
    """The table [suggest]; no code is run.

    Raises:
        ValueError: it is no table, or has other keys.
    """
    table = tables(config).get("suggest", {})
    odd = sorted(table.keys() - {*_OPTIONS}) if isinstance(table, dict) else ["no table"]
    if odd:
        raise ValueError(f"{config}: [suggest] takes {', '.join(_OPTIONS)}, got {', '.join(odd)}")
    return dict(table)


def data(found: Suggestions) -> dict[str, Any]:
    """Suggestions as JSON values, all numbers and words."""
    return {
        "verdict": found.verdict(),
        "unit": found.unit,
        "samples": found.samples,
        "plain": {
            "score": found.plain,
            "weights": found.plain_weights,
            "evidence": found.plain_evidence,
        },
        "rows": [_row(row) for row in found],
        "mends": [
            {
                "claim": m.claim, "layer": m.layer, "cause": m.cause, "mend": m.words,
                "code": m.code, "tried": m.tried,
            }
            for m in found.mends
        ],
        "notes": list(found.notes),
    }  # fmt: skip


def _row(row: Suggestion) -> dict[str, Any]:
    return {
        "claim": row.claim.name,
        "way": row.way,
        "outcome": row.outcome,
        "gain": row.gain.value if row.gain else None,
        "gain_stderr": row.gain.stderr if row.gain else None,
        "decides": row.decides.value if row.decides else None,
        "decides_stderr": row.decides.stderr if row.decides else None,
        "score": row.score,
        "weights": row.weights,
        "data_p_value": row.data.p_value if row.data else None,
        "data_verdict": row.data.verdict if row.data else None,
        "model_verdict": row.model.verdict if row.model else None,
        "model_error": row.model.relative_error if row.model else None,
        "evidence": row.evidence,
        "call": row.call,
        "note": row.note,
    }
