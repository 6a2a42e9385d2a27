"""Diagnose: every disease of the table asked of a run; what another one explains is left out."""

from eqtoolbox.report.diagnosis.diseases import DISEASES
from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.finding import Finding

MONITOR = ("measurements-failed", "measurements-non-finite", "errors")  # what a sick run brings


def diagnose(signs: Signs) -> tuple[list[Finding], set[str]]:
    """Findings of the diseases that a run has, and the ids of findings that these explain.

    A disease explains what else is found of the same id; one that is milder here than the table
    has it explains nothing.
    """
    found, explained = [], set[str]()
    for disease in DISEASES:
        if disease.id in explained:
            continue
        finding = disease.of(signs)
        if finding is not None:
            found.append(finding)
            mild = finding.level == "note" != disease.level
            explained.update(() if mild else (disease.id, *disease.explains))
    if any(finding.level != "note" for finding in found):
        explained.update(MONITOR)
    return found, explained
