"""Explained: what every record means, from the one table that command line, page and docs share."""

import difflib
import re
import textwrap
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

WIDTH = 100  # characters of a line
_PLACE = re.compile(r"<(\w+)>")


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a record says, how it is computed and how it is read."""

    pattern: str  # of names: "conservation/drift/<family>"
    meaning: str
    formula: str
    reading: str
    unit: str = "none"
    reference: str = ""
    see: tuple[str, ...] = ()  # patterns of records to read next

    def fits(self, name: str) -> bool:
        """Whether a record name is of this pattern; trailing places may be missing.

        Example:
            >>> explained("noether/bracket").fits("noether/bracket")
            True
        """
        return bool(_compiled(self.pattern).fullmatch(name))

    @property
    def letters(self) -> dict[str, str]:
        """What the letters in the formula, and the places in the pattern, stand for."""
        table = _table()
        places = {f"<{p}>": table["places"][p] for p in _PLACE.findall(self.pattern)}
        return places | {k: v for k, v in table["letters"].items() if _uses(self.formula, k)}

    def __str__(self) -> str:
        said = {"formula": self.formula, "read it": self.reading, "unit": self.unit}
        said |= {"source": self.reference, "records": ", ".join(self.see)}
        said = {k: v for k, v in said.items() if v}
        width = max(map(len, (*said, *self.letters)), default=0)
        lines = [
            _wrapped(f"{k:<{width}}  {v}", width + 4) for k, v in (said | self.letters).items()
        ]
        return "\n".join([self.pattern, _wrapped(self.meaning, 2), *lines])


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent="  ",
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def meanings() -> tuple[Meaning, ...]:
    """The whole table: records by probe, then the columns of a summary."""
    return _meanings()


def explained(name: str) -> Meaning | None:
    """The meaning of a record of this name, None where the table has none.

    Example:
        >>> explained("conservation/drift/rescale").pattern
        'conservation/drift/<family>'
    """
    return next((m for m in _meanings() if name == m.pattern or m.fits(name)), None)


def near(word: str) -> list[Meaning]:
    """Meanings whose pattern has the word, or else one spelled nearly so.

    Example:
        >>> [m.pattern for m in near("sharpness")]
        ['curvature/sharpness', 'tracking/sharpness', 'critical/sharpness']
        >>> near("curvature/sharpnes")[0].pattern
        'curvature/sharpness'
    """
    words = {m.pattern: set(m.pattern.split("/")) for m in _meanings()}
    found = [m for m in _meanings() if word in words[m.pattern]]
    found = found or [m for m in _meanings() if len(word) > 2 and word in m.pattern]
    if found:
        return found
    names = {_PLACE.sub("", p).rstrip("/."): [p] for p in words}
    if "/" not in word:
        for pattern, parts in words.items():
            for part in parts:
                names.setdefault(part, []).append(pattern)
    close = difflib.get_close_matches(word, list(names), n=3, cutoff=0.7)
    meant = dict.fromkeys(p for name in close for p in names[name])
    return [m for p in meant for m in _meanings() if m.pattern == p]


def markdown() -> str:
    """The table as the page `docs/records.md`."""
    table = _table()
    lines = [
        "# What the records mean",
        "",
        "`eqtoolbox explain NAME` prints an entry of this page, and the page of a run shows it",
        "where the mouse rests on a name. Words in <> stand for a part of the name.",
        "",
        *_definitions("Letters", table["letters"]),
        *_definitions("Parts of a name", {f"<{k}>": v for k, v in table["places"].items()}),
    ]
    section = ""
    for m in _meanings():
        probe = m.pattern.split("/")[0] if "/" in m.pattern else "columns of a summary"
        probe = "every probe with second derivatives" if probe == "<probe>" else probe
        if probe != section:
            section = probe
            lines += [f"## {section[0].upper()}{section[1:]}", ""]
        rows = [f"**`{m.pattern}`**", f":   {m.meaning}", "", f"    `{m.formula}`", ""]
        rows += [f"    {m.reading}", ""]
        tail = [] if m.unit == "none" else [f"Unit: {m.unit}."]
        tail += [f"Source: {m.reference}."] if m.reference else []
        lines += rows + ([f"    {' '.join(tail)}", ""] if tail else [])
    return "\n".join(lines).rstrip() + "\n"


def _definitions(title: str, words: dict[str, str]) -> list[str]:
    rows = [f"| `{word}` | {what} |" for word, what in words.items()]
    return [f"## {title}", "", "| | |", "|---|---|", *rows, ""]


def _uses(formula: str, letter: str) -> bool:
    """Whether a letter stands in a formula for itself, and not inside a word."""
    return bool(re.search(rf"(?<![A-Za-z]){letter}(?![a-z'A-Z])", formula))


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    whole = ""
    for word in re.split(r"(?=/)", pattern):
        if word.startswith("/<"):  # which may be missing
            whole += "(?:/.+)?"
        else:
            parts = [re.escape(part) for part in re.split(r"<\w+>", word)]
            whole += "[^/]+".join(parts)
    return re.compile(whole)


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "records.toml").read_text(encoding="utf-8"))


@cache
def _meanings() -> tuple[Meaning, ...]:
    return tuple(Meaning(pattern=p, **told) for p, told in _table()["records"].items())
