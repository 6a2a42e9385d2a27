"""Findings: every rule applied to a run, the gravest sentence first."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.report import (
    rules_conservation,
    rules_curvature,
    rules_discovery,
    rules_discrete,
    rules_epsilon,
    rules_flow,
    rules_run,
    rules_symmetry,
)
from eqtoolbox.report.finding import Evidence, Finding, Level
from eqtoolbox.report.run import Run
from eqtoolbox.report.words import printable

__all__ = ["RULES", "Evidence", "Finding", "Level", "find"]

RULES: tuple[Callable[[Run], Iterable[Finding]], ...] = (
    rules_run.closure,
    rules_run.scale,
    rules_run.untrained,
    rules_run.nothing,
    rules_run.unseen,
    rules_run.skipped_steps,
    rules_run.finite_loss,
    rules_discovery.growth,
    rules_symmetry.unmeasured,
    rules_symmetry.equivariance,
    rules_discovery.asymmetry,
    rules_discovery.learned,
    rules_symmetry.found,
    rules_symmetry.laws,
    rules_epsilon.epsilon,
    rules_conservation.conservation,
    rules_conservation.gradient_laws,
    rules_conservation.budget_closure,
    rules_conservation.equilibrium,
    rules_flow.turning,
    rules_flow.forecasts,
    rules_symmetry.predicted_curvature,
    rules_discrete.duplicates,
    rules_discrete.dead,
    rules_discrete.collapse,
    rules_curvature.engine,
    rules_curvature.stability,
    rules_curvature.overshoot,
    rules_curvature.sharpening,
    rules_curvature.orbit_free,
    rules_curvature.alignment,
    rules_curvature.negative_curvature,
    rules_run.loss_trend,
    rules_run.unanswered,
    rules_run.cost,
    rules_run.incidents,
)


def find(run: Run) -> list[Finding]:
    """All findings of a run: alarms, warnings, notes, then what is good; rule order within."""
    gravity = {level: -i for i, level in enumerate(get_args(Level))}
    lost = _not_finite(run)
    found = [_dated(run, lost, finding) for rule in RULES for finding in rule(run)]
    found = [replace(f, text=printable(f.text)) for f in found]  # notes are what a file says
    return sorted(found, key=lambda f: gravity[f.level])


def _dated(run: Run, lost: dict[str, NDArray[np.int64]], finding: Finding) -> Finding:
    """A finding with its step, where the run went on and its numbers did not."""
    names = {e.name for e in finding.evidence if not e.name.startswith(("monitor/", "cost/"))}
    measured = [rows.steps[rows.having("ok")] for rows in map(run.rows, names)]
    steps = set(np.unique(np.concatenate(measured)).tolist()) if measured else set()
    if not steps or max(steps) >= run.last_step or "only measurement" in finding.text:
        return finding
    last = max(steps)
    later = [s[s > last] for probe, s in lost.items() if probe in {n.split("/")[0] for n in names}]
    since = min((int(s.min()) for s in later if len(s)), default=None)
    if len(steps) == 1:
        when = f"measured once, at step {last}"
    elif since is None or f"at step {last}" in finding.text:
        return finding
    else:
        when = f"up to step {last}; not finite from step {since} on"
    return replace(finding, text=f"{finding.text[:-1]} ({when}).")


def _not_finite(run: Run) -> dict[str, NDArray[np.int64]]:
    """The steps at which the measurements of a probe met NaN or infinity."""
    found: dict[str, list[NDArray[np.int64]]] = {}
    for name in run.names():
        if name.startswith("training/"):  # which says so itself
            continue
        rows = run.rows(name)
        found.setdefault(name.split("/")[0], []).append(rows.steps[rows.having("non_finite")])
    return {probe: np.concatenate(steps) for probe, steps in found.items()}
