"""Sections: the questions that a run has an answer to, with figures and remarks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from eqtoolbox.record.record import Record
from eqtoolbox.report.figures import Panel
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.topics import TOPICS
from eqtoolbox.report.trace import trace
from eqtoolbox.report.words import listing


@dataclass(frozen=True, kw_only=True)
class Section:
    """A question with the panels that answer it and remarks on what could not be answered."""

    question: str
    slug: str
    explanation: str
    panels: tuple[Panel, ...]
    remarks: tuple[str, ...] = ()
    tables: tuple[dict[str, Any], ...] = ()  # title, columns, rows of texts, numeric: by column


def sections(run: Log, topics: Iterable[Topic] = ()) -> list[Section]:
    """The questions that this run has records for; a panel without data is left out.

    Args:
        run: what was recorded.
        topics: of your own, after those of the toolbox.
    """
    found = []
    for topic in (*TOPICS, *topics):
        panels = tuple(panel for chart in topic.panels for panel in chart(run))
        said = tuple(remarks(run, topic.probes))
        if panels or said:
            found.append(
                Section(
                    question=topic.question,
                    slug=topic.slug,
                    explanation=topic.explanation,
                    panels=panels,
                    remarks=said,
                )
            )
    return found


def remarks(run: Log, probes: tuple[str, ...]) -> Iterator[str]:
    """Why names without a single number have none."""
    names = [n for n in run.names() if n.split("/")[0] in probes]
    measured = {name for name in names if trace(run, name) is not None}
    reasons: dict[str, list[Record]] = {}
    for name in names:
        last = run.rows(name)[-1]
        answered = name in measured or any(m.startswith(f"{name}/") for m in measured)
        if not answered and "/self_test/" not in name:
            said = last.facts.text("why") or last.note  # as it is, for people
            why = ": ".join(part for part in (last.status.replace("_", " "), said) if part)
            reasons.setdefault(why, []).append(last)
    for why, rows in reasons.items():
        yield f"Not measured: {listing([r.name for r in rows])} ({why})."
