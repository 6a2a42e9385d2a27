"""Several runs on one page: what differs, overlays over steps, and findings that not all have."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from eqtoolbox.report.comparison import first, labels, shared
from eqtoolbox.report.contrasts import Table, conserving, differences, keeping, options, table
from eqtoolbox.report.figures import Panel
from eqtoolbox.report.finding import Evidence, Finding
from eqtoolbox.report.header import facts, versions
from eqtoolbox.report.overlays import DRAWN, Line, lines, loss_overlay, overlays
from eqtoolbox.report.run import Run
from eqtoolbox.report.sections import Section, remarks
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.topics import TOPICS
from eqtoolbox.report.words import listing, plural

EVENTS = 200  # newest events shown
OPEN = 8  # findings that are not folded
EACH = 2  # numbers behind a finding that are shown, a run
IN_TITLE = 3  # runs whose names make up the title
ONCE = ("started", "took")  # of two runs never the same


def content(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the template shows of several runs, as plain values."""
    names = labels(runs)
    among = lines(runs, names)
    found = shared(runs)
    apart = [_told(of, names) for of in found if len(of) < len(runs)]
    apart.sort(key=lambda f: f.level == "note")  # what one has well, another may have wrong
    alike = [_told(of, names) for of in found if len(of) == len(runs)]
    events = [e | {"run": n} for run, n in zip(runs, names, strict=True) for e in run.events]
    events.sort(key=lambda e: e.get("time", 0.0))
    return {
        "heading": "What the runs show",
        "further": "shared" if len(apart) <= OPEN else "further",
        "title": listing(names) if len(names) <= IN_TITLE else plural(len(names), "run"),
        "facts": list(_facts(runs, names)),
        "findings": apart[:OPEN],
        "more": [*apart[OPEN:], *(f for f in alike if f.level != "good")],
        "good": [f for f in alike if f.level == "good"],
        "loss": loss_overlay(among),
        "sections": [_beyond(runs, names), *_sections(runs, among)],
        "costs": None,
        "events": events[-EVENTS:],
        "happened": _happened(events[-EVENTS:]),
        "left_out": max(0, len(events) - EVENTS),
        "values": [],
        "versions": " | ".join(
            f"{who}: {said}" if len(names) > 1 else said
            for said, who in _grouped([versions(run) for run in runs], names).items()
        ),
    }


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


def _told(of: dict[int, Finding], names: Sequence[str]) -> Finding:
    """A finding with the names of the runs that have it, and the numbers of each."""
    text, place = first(of).text, next(iter(of))
    if len({f.text for f in of.values()}) > 1:
        text = f"{text.removesuffix('.')} (numbers of {names[place]})."
    if len(of) < len(names):
        text = f"{_who([names[i] for i in of], names)}: {text}"
    evidence: list[Evidence] = []
    for i, f in of.items():
        evidence += [replace(e, name=f"{names[i]}: {e.name}") for e in f.evidence[:EACH]]
    return replace(first(of), text=text, evidence=tuple(evidence))


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
