"""Diagnose: every disease of the table asked of a run, the gravest and most certain first."""

from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.finding import Finding


def diagnose(signs: Signs) -> tuple[list[Finding], set[str]]:
    """Findings of the diseases that a run has, and the ids of findings that these explain."""
    return [], set()
