"""What a demo ends with: whether its data keep their laws, and how its networks compare."""

from collections.abc import Mapping, Sequence

from eqtoolbox.demos.demo import Demo, Law
from eqtoolbox.demos.training import Outcome
from eqtoolbox.record import Record
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.words import listing, number, percent, symmetry

_LEVELS = {"holds": "good", "violated": "warning", "unresolved": "note"}
_SAID = {"holds": "holds", "violated": "is broken", "unresolved": "is undecided"}


def closing(demo: Demo, laws: Sequence[Law], outcomes: Mapping[str, Outcome]) -> list[Finding]:
    """Findings about the data, then one a symmetry and one on the score."""
    found = [_law(law) for law in laws]
    if len(outcomes) < 2:
        return found
    for name in next(iter(outcomes.values())).errors:
        found.append(_compared(name, {e: o.errors[name] for e, o in outcomes.items()}))
    rising = demo.score.rising
    ranked = sorted(outcomes, key=lambda e: outcomes[e].score, reverse=rising)
    scores = listing([f"{e} {percent(outcomes[e].score)}" for e in ranked])
    text = f"Test {demo.score.name}, best first: {scores}."
    return [*found, Finding(level="note", text=text)]


def table(demo: Demo, outcomes: Mapping[str, Outcome]) -> str:
    """One row a network: score, parameters, error and verdict of each symmetry."""
    names = list(next(iter(outcomes.values())).errors)
    heads = ["", demo.score.name, "parameters", *(symmetry(n) for n in names)]
    rows = [
        [e, f"{o.score:.1%}", f"{o.parameters:,}", *(_cell(o.errors[n]) for n in names)]
        for e, o in outcomes.items()
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in [heads, *rows]
    ]
    return "\n".join(lines)


def _law(law: Law) -> Finding:
    r = law.result
    text = f"{law.text}: this {_SAID[r.verdict]}, relative error {number(r.relative_error, 2)} "
    text += f"(floor {number(r.floor, 2)})."
    return Finding(level=_LEVELS[r.verdict], text=text)  # type: ignore[arg-type]


def _compared(name: str, errors: Mapping[str, Record]) -> Finding:
    """Who keeps a symmetry and who breaks it by how much, the closest first."""
    ranked = sorted(errors, key=lambda e: errors[e].value)
    said = [f"{e} {_WORDS[errors[e].verdict or 'unresolved']} {_size(errors[e])}" for e in ranked]
    return Finding(level="note", text=f"Symmetry under {symmetry(name)}: {listing(said)}.")


_WORDS = {"holds": "keeps it", "violated": "breaks it by", "unresolved": "is undecided at"}


def _size(error: Record) -> str:
    size = number(error.value, 2)
    return f"to rounding ({size})" if error.verdict == "holds" else size


def _cell(error: Record) -> str:
    if error.status != "ok":
        return error.status
    return f"{number(error.value, 2)} {error.verdict}"
