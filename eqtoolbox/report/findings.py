"""Findings: every rule of every topic applied to a run, the gravest sentence first."""

from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

import numpy as np

from eqtoolbox.report.finding import Evidence, Finding, Level
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.topics import TOPICS
from eqtoolbox.report.words import printable

__all__ = ["Evidence", "Finding", "Level", "find"]


def find(run: Log, topics: Iterable[Topic] = ()) -> list[Finding]:
    """All findings of a run: alarms, warnings, notes, then what is good; by topic within.

    Args:
        run: what was recorded.
        topics: of your own, after those of the toolbox.
    """
    gravity = {level: -i for i, level in enumerate(get_args(Level))}
    rules = [rule for topic in (*TOPICS, *topics) for rule in topic.rules]
    found = [_dated(run, finding) for rule in rules for finding in rule(run)]
    found = [replace(f, text=printable(f.text)) for f in found]  # facts are what a file says
    return sorted(found, key=lambda f: gravity[f.level])


def _dated(run: Log, finding: Finding) -> Finding:
    """A finding with its step, where the run went on and its numbers were measured only once."""
    names = {e.name for e in finding.evidence if not e.name.startswith(("monitor/", "cost/"))}
    measured = [rows.steps[rows.having("ok")] for rows in map(run.rows, names)]
    steps = set(np.unique(np.concatenate(measured)).tolist()) if measured else set()
    if len(steps) != 1 or "only measurement" in finding.text:
        return finding
    (step,) = steps
    if step >= run.last_step:
        return finding
    return replace(finding, text=f"{finding.text[:-1]} (measured once, at step {step}).")
