"""Findings: every rule of every topic applied to a run, the gravest sentence first."""

from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.report.diagnosis.diagnose import diagnose
from eqtoolbox.report.diagnosis.gate import gated, nothing
from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.finding import Evidence, Finding, Findings, Level
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.topics import TOPICS
from eqtoolbox.report.words import printable

__all__ = ["Evidence", "Finding", "Level", "find"]


OF_THE_RUN = ("monitor/", "cost/", "training/", "vital/")  # what has no measurements of its own
EARLY = 0.5  # share of a run


def find(run: Log, topics: Iterable[Topic] = ()) -> Findings:
    """All findings of a run: alarms, warnings, notes, then what is good; diseases first within.

    Args:
        run: what was recorded.
        topics: of your own, after those of the toolbox.
    """
    gravity = {level: -i for i, level in enumerate(get_args(Level))}
    signs, lost = Signs(run), _not_finite(run)
    ill, explained = diagnose(signs)
    rules = [(rule, topic) for topic in (*TOPICS, *topics) for rule in topic.rules]
    told = (_with_remedy(f, topic) for rule, topic in rules for f in rule(run))
    found = gated(signs, [_dated(run, lost, f) for f in told], explained)
    found = [*ill, *found, *nothing(signs, [*ill, *found])]
    found = [replace(f, text=printable(f.text)) for f in found]  # facts are what a file says
    return Findings(sorted(found, key=lambda f: gravity[f.level]))


def _with_remedy(finding: Finding, topic: Topic) -> Finding:
    """A warning with what to try: its own, or that of its topic."""
    bare = finding.level in ("warning", "alarm") and not finding.remedy
    return replace(finding, remedy=topic.remedy) if bare else finding


def _dated(run: Log, lost: dict[str, NDArray[np.int64]], finding: Finding) -> Finding:
    """A finding with its step, where the run went on and its numbers did not.

    What was seen once, and early, says so in its first words, and warns of nothing.
    """
    named = (e.name for e in finding.evidence if not e.name.startswith(OF_THE_RUN))
    names = {name for name in named if "/self_test/" not in name}  # which is asked once
    measured = [rows.steps[rows.having("ok")] for rows in map(run.rows, names)]
    steps = set(np.unique(np.concatenate(measured)).tolist()) if measured else set()
    if not steps or max(steps) >= run.last_step:
        return finding
    last = max(steps)
    if len(steps) == 1 and last + 1 <= EARLY * (run.last_step + 1):
        level: Level = "note" if finding.level in ("warning", "alarm") else finding.level
        tried = finding.remedy if level == finding.level else ()
        return replace(
            finding, level=level, remedy=tried, text=f"Seen once, at step {last}: {finding.text}"
        )
    if finding.dated:
        return finding
    later = [s[s > last] for probe, s in lost.items() if probe in {n.split("/")[0] for n in names}]
    since = min((int(s.min()) for s in later if len(s)), default=None)
    if len(steps) == 1:
        when = f"measured once, at step {last}"
    elif since is None:
        return finding
    else:
        when = f"up to step {last}; not finite from step {since} on"
    return replace(finding, text=f"{finding.text.removesuffix('.')} ({when}).")


def _not_finite(run: Log) -> dict[str, NDArray[np.int64]]:
    """The steps at which the measurements of a probe met NaN or infinity."""
    found: dict[str, list[NDArray[np.int64]]] = {}
    for name in run.names():
        if name.startswith("training/"):  # which says so itself
            continue
        rows = run.rows(name)
        found.setdefault(name.split("/")[0], []).append(rows.steps[rows.having("non_finite")])
    return {probe: np.concatenate(steps) for probe, steps in found.items()}
