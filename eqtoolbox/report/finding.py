"""A finding: one sentence about a run, with the numbers that it rests on."""

import html
from dataclasses import dataclass
from typing import Literal

from eqtoolbox.report.words import number

BROKEN_LAW = "broken-law"  # of a symmetry that nobody claimed: a note, and yet unusual
FEW = 2  # findings of a kind that are told one by one
Level = Literal["good", "note", "warning", "alarm"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One number behind a finding.

    Example:
        >>> str(Evidence(name="curvature/stability", step=90, value=1.02, points=5))
        'curvature/stability 1.02 (median of 5 to step 90)'
    """

    name: str  # record name
    step: int  # optimizer step of the newest record used
    value: float
    points: int = 1  # records behind the value: their median

    def __str__(self) -> str:
        when = f"median of {self.points} to" if self.points > 1 else "at"
        return f"{self.name} {number(self.value)} ({when} step {self.step})"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence with its level and evidence; of what is wrong also the cause and what to try.

    Example:
        >>> Finding(level="note", text="The loss fell from 2.3 to 0.1.").level
        'note'
    """

    level: Level
    text: str
    evidence: tuple[Evidence, ...] = ()
    dated: bool = False  # whether the text says at which step its numbers were measured last
    id: str = ""  # of a disease, in kebab-case: "vanishing-gradient"
    cause: str = ""  # what tells it from what looks alike
    where: str = ""  # a layer, a parameter, a part of the loop
    remedy: tuple[str, ...] = ()  # one to three concrete steps, the first to try first
    step: int | None = None  # at which it began

    def _repr_html_(self) -> str:
        why = "; ".join(map(str, self.evidence))
        shown = f"<b>{self.level}</b>: {html.escape(self.text)}"
        tried = f"<br>Try: {html.escape('; '.join(self.remedy))}." if self.remedy else ""
        return (f"{shown} <small>({html.escape(why)})</small>" if why else shown) + tried


class Findings(list[Finding]):
    """Findings as a list, the gravest first."""

    def _repr_html_(self) -> str:
        return f"<ul>{''.join(f'<li>{f._repr_html_()}</li>' for f in self)}</ul>"
