"""Placed: findings by the question that they answer, each beside the figure that shows it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eqtoolbox.report.figures import Panel
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.sections import Section
from eqtoolbox.report.topics import TOPICS

TRAINING = "training"  # the first group: findings about the run itself
CARDS = 3  # of more nobody knows where to begin
WRONG = ("alarm", "warning")


class Places:
    """Where on a page each record is drawn.

    Args:
        sections: of the page, in order.
        loss: the panel of the training loss, which stands above all sections.
    """

    def __init__(self, sections: Sequence[Section], loss: Panel | None) -> None:
        self.questions = {section.slug: section.question for section in sections}
        self.panels: dict[str, str] = {}  # by record name
        self.sections: dict[str, str] = {}  # by panel
        for slug, panel in [(s.slug, p) for s in sections for p in s.panels] + (
            [(TRAINING, loss)] if loss else []
        ):
            self.sections[panel.slug] = slug
            for trace in panel.figure["data"]:
                self.panels.setdefault(str(trace.get("meta", "")), panel.slug)
        words = {word: t.slug for t in TOPICS for word in t.probes if t.slug in self.questions}
        self.words = words | {"training": TRAINING, "vital": TRAINING, "monitor": TRAINING}

    def link(self, name: str) -> str:
        """The panel that draws a record, else the section of its probe, else nothing."""
        if name in self.panels:
            return self.panels[name]
        quantity = "/".join(name.split("/")[:2])
        near = [slug for n, slug in self.panels.items() if n.startswith(quantity)]
        section = self.words.get(name.split("/")[0], "")
        return near[0] if near else "" if section == TRAINING else section

    def group(self, finding: Finding) -> str:
        """The slug of the question that a finding belongs to."""
        for e in finding.evidence:
            link = self.link(e.name)
            known = self.sections.get(link) or self.words.get(e.name.split("/")[0])
            if known:
                return known
        return TRAINING

    def beside(self, finding: Finding) -> str:
        """The panel, or the section, that shows the first drawn record behind a finding.

        What is found of the training as a whole stands beside its loss.
        """
        shown = next((link for e in finding.evidence if (link := self.link(e.name))), "")
        whole = "loss" in self.sections and self.group(finding) == TRAINING
        return shown or ("loss" if whole else "")


def groups(findings: Iterable[Finding], places: Places) -> list[dict[str, Any]]:
    """Findings by question, in the order of the page: {"slug", "question", "findings", "levels"}.

    Each finding comes with the links of its evidence: (finding, {record name: anchor}).
    """
    found: dict[str, list[tuple[Finding, Mapping[str, str]]]] = {}
    for f in findings:
        links = {e.name: link for e in f.evidence if (link := places.link(e.name))}
        found.setdefault(places.group(f), []).append((f, links))
    questions = {TRAINING: "Did it learn, and is the run what it seems?"} | places.questions
    return [
        {
            "slug": slug,
            "question": question,
            "findings": found[slug],
            "levels": dict(Counter(f.level for f, _ in found[slug])),
        }
        for slug, question in questions.items()
        if slug in found
    ]


def cards(findings: Sequence[Finding], places: Places) -> list[dict[str, Any]]:
    """What to look at first: what is wrong with its remedy and the panel that shows it.

    Of more than three, those with the same id and remedy share a card.
    """
    wrong = [f for f in findings if f.level in WRONG]
    found: dict[Any, list[Finding]] = {}
    for i, f in enumerate(wrong):
        alike = (f.level, f.id, f.remedy) if len(wrong) > CARDS and f.id else i
        found.setdefault(alike, []).append(f)
    return [
        {
            "level": same[0].level,
            "text": same[0].text,
            "also": [f.text for f in same[1:]],
            "cause": same[0].cause,
            "remedy": same[0].remedy,
            "link": next(filter(None, map(places.beside, same)), ""),
        }
        for same in list(found.values())[:CARDS]
    ]
