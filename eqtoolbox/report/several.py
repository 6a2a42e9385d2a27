"""Several runs on one page: what differs, overlays over steps, and findings that not all have."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from eqtoolbox.report.comparison import first, labels, shared
from eqtoolbox.report.contrasts import Table, conserving, differences, keeping, options, table
from eqtoolbox.report.figures import Panel
from eqtoolbox.report.finding import Evidence, Finding
from eqtoolbox.report.header import facts, versions
from eqtoolbox.report.headline import verdict
from eqtoolbox.report.overlays import DRAWN, Line, lines, loss_overlay, overlays
from eqtoolbox.report.placed import Places
from eqtoolbox.report.run import Run
from eqtoolbox.report.sections import Section, remarks
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.topics import TOPICS
from eqtoolbox.report.words import listing, plural

EVENTS = 200  # newest events shown
NOTHING = "There is no finding."
EACH = 2  # numbers behind a finding that are shown, a run
IN_TITLE = 3  # runs whose names make up the title
ONCE = ("started", "took")  # of two runs never the same


def content(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the template shows of several runs, as plain values."""
    names, findings = labels(runs), [run.findings() for run in runs]
    among = lines(runs, names)
    loss, parts = loss_overlay(among), [_beyond(runs, names), *_sections(runs, among)]
    events = [e | {"run": n} for run, n in zip(runs, names, strict=True) for e in run.events]
    events.sort(key=lambda e: e.get("time", 0.0))
    return {
        "title": listing(names) if len(names) <= IN_TITLE else plural(len(names), "run"),
        "heading": "What the runs show",
        "answers": [
            {"question": name, "answer": verdict(run, found) or NOTHING, "link": ""}
            for run, name, found in zip(runs, names, findings, strict=True)
        ],
        "facts": list(_facts(runs, names)),
        "groups": list(_groups(findings, names, Places(parts, loss))),
        "findings": [],
        "more": [],
        "good": [],
        "loss": loss,
        "sections": parts,
        "costs": None,
        "events": events[-EVENTS:],
        "happened": _happened(events[-EVENTS:]),
        "left_out": max(0, len(events) - EVENTS),
        "values": [],
        "versions": " | ".join(
            f"{who}: {said}"
            for said, who in _grouped([versions(run) for run in runs], names).items()
        ),
    }


def _groups(
    findings: Sequence[Sequence[Finding]], names: Sequence[str], places: Places
) -> Iterator[dict[str, Any]]:
    """Findings that not all have, what is well or ill before notes; then those that all have."""
    found = shared(findings)
    apart = [of for of in found if len(of) < len(names)]
    apart.sort(key=lambda of: first(of).level == "note")
    alike = [of for of in found if len(of) == len(names)]
    for question, some in (("What not all runs show", apart), ("What all runs show", alike)):
        told = [_told(of, names, places) for of in some]
        if told:
            group = {"slug": "", "question": question, "findings": told, "open": some is apart}
            yield group | {"levels": dict(Counter(f.level for f, _ in told))}


def _happened(events: Sequence[dict[str, Any]]) -> Table:
    columns = ("run", "step", "kind", "probe", "message")
    rows = [[str(e.get(column, "")) for column in columns] for e in events]
    return table("", columns, rows)


def _grouped(texts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Texts with those that have them in words; "all" where there is one text."""
    found: dict[str, list[str]] = {}
    for text, name in zip(texts, names, strict=True):
        found.setdefault(text, []).append(name)
    return {text: _who(some, names) for text, some in found.items() if text}


def _who(some: Sequence[str], names: Sequence[str]) -> str:
    """Runs in words: a and b; all; all but c."""
    others = [name for name in names if name not in some]
    if not others:
        return "all"
    few = len(names) > 3 and len(others) == 1
    return f"all but {others[0]}" if few else listing(list(some))


def _facts(runs: Sequence[Run], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each run with what tells it from the others, then what is the same in all."""
    told = [dict(facts(run)) for run in runs]
    keys = [key for key in dict.fromkeys(k for of in told for k in of) if key not in ONCE]
    same = [key for key in keys if len({of.get(key) for of in told}) == 1]
    for name, of in zip(names, told, strict=True):
        said = [f"{key} {of[key]}" for key in keys if key not in same and key in of]
        yield name, " · ".join(said) or "described as the others are"
    if same:
        yield "all", " · ".join(f"{key} {told[0][key]}" for key in same)


def _told(
    of: dict[int, Finding], names: Sequence[str], places: Places
) -> tuple[Finding, dict[str, str]]:
    """A finding with the runs that have it, the numbers of each, and their figures."""
    text, place = first(of).text, next(iter(of))
    if len({f.text for f in of.values()}) > 1:
        text = f"{text.removesuffix('.')} (numbers of {names[place]})."
    if len(of) < len(names):
        text = f"{_who([names[i] for i in of], names)}: {text}"
    evidence: list[Evidence] = []
    links: dict[str, str] = {}
    for i, f in of.items():
        for e in f.evidence[:EACH]:
            evidence.append(replace(e, name=f"{names[i]}: {e.name}"))
            if link := places.link(e.name):
                links[evidence[-1].name] = link
    return replace(first(of), text=text, evidence=tuple(evidence)), links


def _beyond(runs: Sequence[Run], names: Sequence[str]) -> Section:
    ends = {run.last_step for run in runs}
    unequal = "The runs end at different steps; each value is of the end of its own run."
    return Section(
        question="What differs beyond the errors?",
        slug="differences",
        explanation="Medians of the last five measurements; a difference to the first run counts "
        "from three times the errors of both on.",
        panels=(),
        remarks=(unequal,) if len(ends) > 1 else (),
        tables=(*options(runs, names), *differences(runs, names)),
    )


def _sections(runs: Sequence[Run], among: Sequence[Line]) -> Iterator[Section]:
    """The questions that a run has an answer to, with overlays and tables."""
    names = [line.label for line in among]
    tables = {"equivariance": keeping, "conservation": conserving}
    own = dict.fromkeys(topic for run in runs for topic in run.topics)
    for topic in (*TOPICS, *own):
        panels: list[Panel] = []
        left = 0
        for quantity, title in _drawn(runs, topic).items():
            some, more = overlays(among, quantity, title)
            panels += some
            left += more
        said = list(_remarks(runs, names, topic))
        if left:
            said.append(f"{plural(left, 'figure')} more are left out.")
        shown = tuple(tables[topic.slug](runs, names)) if topic.slug in tables else ()
        if panels or shown:
            yield Section(
                question=topic.question, slug=topic.slug, explanation=topic.explanation,
                panels=tuple(panels), remarks=tuple(said), tables=shown,
            )  # fmt: skip


def _drawn(runs: Sequence[Run], topic: Topic) -> dict[str, str]:
    """Quantities of a topic and their titles; all records of its probes for a user's own."""
    if topic in TOPICS:
        return DRAWN.get(topic.slug, {})
    found = dict.fromkeys(n for run in runs for n in run.names() if n.split("/")[0] in topic.probes)
    return {name: name for name in found}


def _remarks(runs: Sequence[Run], names: Sequence[str], topic: Topic) -> Iterator[str]:
    """What runs could not measure, the same words once."""
    found: dict[str, list[str]] = {}
    for run, name in zip(runs, names, strict=True):
        for said in remarks(run, topic.probes):
            found.setdefault(said, []).append(name)
    for said, some in found.items():
        yield f"{_who(some, names)}: {said}"
