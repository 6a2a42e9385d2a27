"""Headline: a run in one sentence, and the five questions that everybody asks first."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from eqtoolbox.report.diagnosis.diseases import DISEASES
from eqtoolbox.report.diagnosis.of_data import OUTCOME
from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.log import Log
from eqtoolbox.report.placed import Places
from eqtoolbox.report.topics.charges import drifts
from eqtoolbox.report.topics.stability import BEYOND, EDGE
from eqtoolbox.report.trace import Curve, judged, trace, traces
from eqtoolbox.report.words import CAUSES, listing, number, percent, plural, symmetry, words

STATES = {
    "learned": "It learned",
    "little": "It learned a little",
    "stuck": "It did not learn",
    "grew": "It did not learn",
    "not finite": "It broke",
    "unknown": "The loss does not say whether it learned",
}
# what accounts for a run that has not learned
DOUBTS = {disease.id for disease in DISEASES if {*OUTCOME} <= {*disease.explains}}


def verdict(run: Log, findings: Sequence[Finding]) -> str:
    """Whether the run learned, and how much is wrong, in a sentence or two."""
    signs = Signs(run)
    if not findings and not signs.losses[1].size:
        return ""
    said = STATES[signs.state]
    if signs.state == "not finite":
        said += f": loss or parameters are not finite from step {signs.lost_at} on"
    elif signs.state == "unknown" and signs.told_by_few:
        said = "Too few losses are known to say whether it learned"
    elif signs.state != "unknown":
        start, end = signs.level
        went = "grew" if signs.state == "grew" and end > start else "went"
        said += f": the loss {went} from {number(start)} to {number(end)}"
        said += " and swings" if signs.state == "grew" and end <= start else ""
    alarms, warnings = (sum(f.level == x for f in findings) for x in ("alarm", "warning"))
    counted = [plural(n, word) for n, word in ((alarms, "alarm"), (warnings, "warning")) if n]
    if not counted:
        return f"{said}. No alarm and no warning."
    gravest = next(f for f in findings if f.level == ("alarm" if alarms else "warning"))
    return f"{said}. {listing(counted)}; the first: {_clause(gravest)}."


def _clause(finding: Finding) -> str:
    """What a finding says before its numbers, within a sentence."""
    clause = re.split(r"[:;.,] ", finding.text.removesuffix("."))[0]
    return clause if clause[1:2].isupper() else clause[:1].lower() + clause[1:]


def answers(run: Log, findings: Sequence[Finding], places: Places) -> list[dict[str, Any]]:
    """What a stranger asks first, as far as the run tells: {"question", "answer", "link"}."""
    return [
        {"question": question, "answer": answer, "link": link}
        for question, find in QUESTIONS.items()
        for answer, link in [find(run, findings, places)]
        if answer
    ]


Answer = tuple[str, str]


def _learned(run: Log, findings: Sequence[Finding], places: Places) -> Answer:
    signs, link = Signs(run), "loss" if "loss" in places.sections else ""
    if signs.state == "not finite":
        return f"No: loss or parameters are not finite from step {signs.lost_at} on.", link
    if signs.state == "unknown":
        return "", ""
    said = {"learned": "Yes", "little": "A little"}.get(signs.state, "No")
    but = next((f for f in findings if f.id in DOUBTS and f.level in ("alarm", "warning")), None)
    if said == "Yes" and but is not None:
        said = f"Its loss says so, but {_clause(but)}"
    start, end = (number(level) for level in signs.level)
    idle = signs.constant_loss
    beside = "" if idle is None else f"; the best constant output has {number(idle)}"
    return f"{said}. Loss {start} at the start, {end} at the end{beside}.", link


def _symmetries(run: Log, findings: Sequence[Finding], places: Places) -> Answer:
    errors, but = traces(run, "equivariance/relative_error"), traces(run, "noether/epsilon")
    laws = {
        f"{words(family)} (but for epsilon)" if family in but else words(family): but.get(family, t)
        for family, t in traces(run, "noether/first_order").items()
    }
    named = {symmetry(name): t for name, t in errors.items()}
    said = [*_judged(named, "Of the data"), *_judged(laws, "Of the weights")]
    first = next(iter([*errors.values(), *laws.values()]), None)
    return ". ".join(said) + "." if said else "", places.link(first.name) if first else ""


def _judged(found: dict[str, Curve], where: str) -> Iterator[str]:
    by: dict[str, list[str]] = {}
    for name, t in found.items():
        said = {"holds": "holding", "violated": "violated", "trivial": "trivial"}
        by.setdefault(said.get(str(t.verdict), "undecided"), []).append(name)
    order = [said for said in ("holding", "violated", "trivial", "undecided") if said in by]
    if order:
        yield f"{where}, {'; '.join(f'{said}: {listing(by[said])}' for said in order)}"


def _charges(run: Log, findings: Sequence[Finding], places: Places) -> Answer:
    found = drifts(run)
    if not found:
        return "", ""
    held = [words(f) for f, t in found.items() if judged(t.last) == "holds"]
    moved = {f: t for f, t in found.items() if words(f) not in held}
    moved = dict(sorted(moved.items(), key=lambda item: -abs(item[1].last.value)))
    said = [
        f"Conserved to rounding: {listing(held)}" if held else "No charge is conserved to rounding"
    ]
    if moved:
        parts = [
            f"{words(f)} by {percent(abs(t.last.value))}{_cause(run, f)}" for f, t in moved.items()
        ]
        some = [*parts[:2], f"least {parts[-1]}"] if len(parts) > 3 else parts
        said.append(f"Moved: {listing(some)}")
    return ". ".join(said) + ".", places.link(next(iter(found.values())).name)


def _cause(run: Log, family: str) -> str:
    """The largest cause of a drift, in parentheses."""
    shares = {c: trace(run, f"conservation/share_{c}/{family}") for c in CAUSES}
    known = {c: t.last.value for c, t in shares.items() if t is not None and t.last.value > 0}
    if not known:
        return ""
    cause = max(known, key=lambda c: known[c])
    return f" ({CAUSES[cause]})"


def _edge(run: Log, findings: Sequence[Finding], places: Places) -> Answer:
    name = "curvature/stability"
    told = next((f for f in findings if any(e.name == name for e in f.evidence)), None)
    if told is None:
        return "", ""
    now, *peak = (e.value for e in told.evidence if e.name == name)
    said = "Not at the end, but before." if peak else "No."
    said = "Beyond it." if now >= BEYOND else "Yes." if now >= EDGE else said
    return f"{said} {told.text}", places.link(name)


def _next(run: Log, findings: Sequence[Finding], places: Places) -> Answer:
    first = next((f for f in findings if f.remedy), None)
    if first is None:
        return ("No finding asks for a change." if findings else ""), ""
    why = _clause(first)
    return f"{why[:1].upper()}{why[1:]}: {first.remedy[0]}.", places.beside(first)


QUESTIONS: dict[str, Callable[[Log, Sequence[Finding], Places], Answer]] = {
    "Did it learn?": _learned,
    "Which symmetries hold?": _symmetries,
    "What is conserved, and what broke it?": _charges,
    "Was the learning rate at the edge?": _edge,
    "What to do next?": _next,
}
