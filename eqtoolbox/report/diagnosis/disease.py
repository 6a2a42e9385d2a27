"""A disease: its name, what shows it, what tells it from what looks alike, and what to try."""

from collections.abc import Callable
from dataclasses import dataclass, field

from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.finding import Finding, Level


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """What a run shows of a disease; what is given here goes before what the table says."""

    text: str  # one sentence
    names: tuple[str, ...] = ()  # records that it rests on
    level: Level | None = None
    where: str = ""
    cause: str = ""
    remedy: tuple[str, ...] = ()
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class Disease:
    """One row of the table.

    Example:
        >>> bored = Disease(
        ...     id="no-records", level="note", remedy=("train longer",), told_from="-", source="-",
        ...     symptom=lambda signs: Symptom(text="Nothing yet.") if signs.length < 2 else None,
        ... )
        >>> bored.id
        'no-records'
    """

    id: str
    level: Level
    symptom: Callable[[Signs], Symptom | None] = field(repr=False)
    told_from: str  # its look-alikes
    remedy: tuple[str, ...]  # one to three steps, the first to try first
    source: str
    explains: tuple[str, ...] = ()  # ids of diseases and findings that it accounts for

    def of(self, signs: Signs) -> Finding | None:
        """The finding, where a run shows the disease."""
        seen = self.symptom(signs)
        if seen is None:
            return None
        return Finding(
            level=seen.level or self.level,
            text=seen.text,
            evidence=signs.evidence(*seen.names),
            id=self.id,
            cause=seen.cause or self.told_from,
            where=seen.where,
            remedy=seen.remedy or self.remedy,
            step=seen.step,
        )
