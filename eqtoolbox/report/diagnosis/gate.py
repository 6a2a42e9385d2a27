"""The gate: a run that did not learn is not praised, and what a cause explains is told once."""

from collections.abc import Iterable
from dataclasses import replace

from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.finding import BROKEN_LAW, Finding
from eqtoolbox.report.words import number

HARMLESS = ("beyond-edge", "near-units")  # while the loss falls
UNUSUAL = (  # also as notes
    BROKEN_LAW, "decay-too-strong", "no-gradient", "vanishing-gradient", "rectified-logits",
)  # fmt: skip
LOST = "equivariance/growth"  # of a symmetry that the model had in this run
CLAIMS = ("broken-symmetry", "lost-symmetry")  # of which somebody said that they hold
NOTHING = "Nothing unusual was found, and the run learned: {} at the start, {} at the end."


def gated(signs: Signs, found: Iterable[Finding], explained: Iterable[str]) -> list[Finding]:
    """Findings with the level that they deserve in this run.

    Args:
        signs: of the run.
        found: by all rules.
        explained: ids of findings that a disease accounts for; they become notes.
    """
    quiet = {*explained, *(HARMLESS if signs.state == "learned" else ())}
    return [_leveled(finding, quiet, signs.praised) for finding in found]


def _leveled(finding: Finding, quiet: set[str], praised: bool) -> Finding:
    hollow = finding.level == "good" and not praised
    if hollow or (finding.level in ("warning", "alarm") and finding.id in quiet):
        return replace(finding, level="note", remedy=())
    return finding


def nothing(signs: Signs, found: Iterable[Finding]) -> list[Finding]:
    """That nothing is wrong, where the run learned and no finding warns."""
    if not signs.praised or signs.state != "learned":
        return []
    odd = UNUSUAL if signs.run.info.get("preset") else UNUSUAL + CLAIMS
    if any(f.level in ("warning", "alarm") or f.id in odd or _lost(f) for f in found):
        return []
    text = NOTHING.format(*map(number, signs.level))
    evidence = signs.evidence("vital/losses") or signs.evidence("training/loss")
    return [Finding(level="good", text=text, evidence=evidence, id="nothing-unusual")]


def _lost(finding: Finding) -> bool:
    return any(evidence.name.startswith(LOST) for evidence in finding.evidence)
