"""A selection: the names and findings of a run that somebody asks for."""

from collections.abc import Iterable, Sequence
from typing import get_args

from eqtoolbox.record.chosen import asked
from eqtoolbox.report.directory import nearest
from eqtoolbox.report.finding import Finding, Level

LEVELS: tuple[Level, ...] = get_args(Level)


def selected(names: Sequence[str], only: Sequence[str]) -> list[str]:
    """The names that are asked for, all of them where nothing is.

    Raises:
        KeyError: one of `only` is no name here; says which are near.
    """
    for wanted in only:
        if not any(asked(name, [wanted]) for name in names):
            words = sorted({name.split("/")[0] for name in names})
            hint = nearest(wanted, list(names) if "/" in wanted else words)
            raise KeyError(f"no record is named {wanted!r}; {hint}")
    return [name for name in names if asked(name, only)]


def about(findings: Iterable[Finding], only: Sequence[str]) -> list[Finding]:
    """The findings that rest on a name that is asked for."""
    return [f for f in findings if not only or any(asked(e.name, only) for e in f.evidence)]
