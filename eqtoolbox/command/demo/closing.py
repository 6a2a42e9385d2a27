"""What a demo ends with: whether its data keep their laws, and how its networks compare."""

import math
from collections.abc import Mapping, Sequence

from eqtoolbox.command.demo.training import Outcome
from eqtoolbox.demos.demo import Demo, Measured, PhysicalLaw
from eqtoolbox.record.record import Record
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.words import listing, number, percent, symmetry
from eqtoolbox.symmetry.asymmetry import DataAsymmetry


def closing(
    demo: Demo, laws: Sequence[PhysicalLaw], outcomes: Mapping[str, Outcome]
) -> list[Finding]:
    """Findings about the data, then one a symmetry and one on the score."""
    found = [_law(law) for law in laws]
    if len(outcomes) < 2:
        return found
    for name in next(iter(outcomes.values())).errors:
        found.append(_compared(name, {e: o.errors[name] for e, o in outcomes.items()}))
    made = {e: demo.made(o.network) for e, o in outcomes.items()}
    for what in next(iter(made.values())):
        found.append(_made(what, {e: of[what] for e, of in made.items()}))
    rising = demo.score.rising
    ranked = sorted(outcomes, key=lambda e: outcomes[e].score, reverse=rising)
    text = (
        f"Test {demo.score.name}, best first: {listing([_scored(e, outcomes[e]) for e in ranked])}"
    )
    best, second = (outcomes[e] for e in ranked[:2])
    apart = abs(best.score - second.score) > 2 * math.hypot(best.stderr, second.stderr)
    text += "." if apart else "; the first two are too close to tell apart."
    return [*found, Finding(level="note", text=text)]


def table(demo: Demo, outcomes: Mapping[str, Outcome]) -> str:
    """One row a network: score, parameters, error and verdict of each symmetry."""
    names = list(next(iter(outcomes.values())).errors)
    heads = ["", demo.score.name, "parameters", *(symmetry(n) for n in names)]
    rows = [
        [
            e,
            f"{o.score:.1%} ± {o.stderr:.1%}",
            f"{o.parameters:,}",
            *(_cell(o.errors[n]) for n in names),
        ]
        for e, o in outcomes.items()
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in [heads, *rows]
    ]
    return "\n".join(lines)


def _scored(entry: str, outcome: Outcome) -> str:
    return f"{entry} {percent(outcome.score)} ± {percent(outcome.stderr)}"


def _law(law: PhysicalLaw) -> Finding:
    r = law.result
    expected = r.verdict == ("violated" if law.control else "holds")
    said = "holds" if r.verdict == "holds" else f"is {r.verdict}"
    doubt = "" if expected else f" But the law {said}: do not trust the comparison."
    name, value = (
        ("energy distance", r.coefficient)
        if isinstance(r, DataAsymmetry)
        else ("relative error", r.relative_error)
    )
    size = f"{name} {number(value, 2)} (floor {number(r.floor, 2)})"
    return Finding(level="good" if expected else "alarm", text=f"{law.text}: {size}.{doubt}")


def _compared(name: str, errors: Mapping[str, Record]) -> Finding:
    """Who keeps a symmetry, and who breaks it by how much, the closest first."""
    ranked = sorted(errors, key=lambda e: errors[e].value)
    said = []
    kept = [e for e in ranked if errors[e].verdict == "holds"]
    if kept:
        said.append(f"kept to rounding by {listing(kept)}")
    broken = [e for e in ranked if errors[e].verdict == "violated"]
    if broken:
        sizes = listing([f"{e} ({number(errors[e].value, 2)})" for e in broken])
        said.append(f"broken by {sizes}")
    rest = [e for e in ranked if e not in kept + broken]
    if rest:
        said.append(f"undecided for {listing(rest)}")
    return Finding(level="note", text=f"Symmetry under {symmetry(name)}: {'; '.join(said)}.")


def _made(what: str, found: Mapping[str, Measured]) -> Finding:
    """Whose number is no more than chance makes, and whose is."""
    ranked = sorted(found, key=lambda e: found[e].value)
    words = {"holds": "no more than chance for", "violated": "more than chance for"}
    said = []
    for verdict in dict.fromkeys(found[e].verdict for e in ranked):
        some = [
            f"{e} {number(found[e].value, 2)} (floor {number(found[e].floor, 2)})"
            for e in ranked
            if found[e].verdict == verdict
        ]
        said.append(f"{words.get(verdict, 'undecided for')} {listing(some)}")
    return Finding(level="note", text=f"{what}: {'; '.join(said)}.")


def _cell(error: Record) -> str:
    if error.status != "ok":
        return error.status
    return f"{number(error.value, 2)} {error.verdict}"
