"""Glossary: what the words mean, from the one table that the command line and the docs share."""

import difflib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from eqtoolbox.report.explained import Meaning, explained

_HEAD = """# Glossary

`eqtoolbox explain WORD` prints an entry of this page. [The records](records.md) have an entry
for each record, and say what the letters of the formulas are; how the words hang together is told
in [Concepts](concepts.md), and what is measured in [The laws](laws.md).
"""


@dataclass(frozen=True, kw_only=True)
class Word(Meaning):
    """What a word means; `pattern` is the word."""

    formula: str = ""
    reading: str = ""
    unit: str = ""
    section: str = ""
    also: tuple[str, ...] = ()  # other words for it


def terms() -> tuple[Word, ...]:
    """All words, section by section."""
    return tuple(_terms().values())


def term(word: str) -> Word | None:
    """The entry of a word, None where there is none.

    Example:
        >>> term("head_rotation").pattern, term("overlap").pattern
        ('head rotation', 'alignment')
    """
    plain = _plain(word)
    return next((t for t in terms() if plain in map(_plain, (t.pattern, *t.also))), None)


def nearest(word: str) -> Word | None:
    """The entry of the word that is spelled most like it, None where none is.

    Example:
        >>> nearest("chargge").pattern
        'charge'
    """
    words = {_plain(w): t for t in terms() for w in (t.pattern, *t.also)}
    close = difflib.get_close_matches(_plain(word), list(words), n=1, cutoff=0.8)
    return words[close[0]] if close else None


def used(texts: Sequence[str]) -> list[Word]:
    """The entries of the words that texts have, in their order; of a long word not its parts.

    Example:
        >>> [w.pattern for w in used(["Head rotation holds; implicit bias moved a charge."])]
        ['head rotation', 'holds', 'implicit bias', 'charge']
    """
    known = {_plain(w): t for t in terms() for w in (t.pattern, *t.also)}
    longest = "|".join(re.escape(w) for w in sorted(known, key=len, reverse=True))
    said = re.finditer(rf"\b({longest})s?\b", _plain(" ".join(texts)))
    return list({known[m[1]].pattern: known[m[1]] for m in said}.values())


def markdown() -> str:
    """The words as the page `docs/glossary.md`."""
    lines, section = [_HEAD], ""
    for t in terms():
        if t.section != section:
            section = t.section
            lines += [f"## {section}", ""]
        lines += [f"### {t.pattern[0].upper()}{t.pattern[1:]}", "", t.meaning, ""]
        lines += [f"`{t.formula}`", ""] if t.formula else []
        lines += [t.reading, ""] if t.reading else []
        tail = [f"Unit: {t.unit}."] if t.unit else []
        tail += [f"Source: {t.reference}."] if t.reference else []
        tail += [f"Also: {', '.join(t.also)}."] if t.also else []
        tail += [f"Records: {', '.join(f'`{p}`' for p in t.see)}."] if t.see else []
        lines += [" ".join(tail), ""] if tail else []
    return "\n".join(lines).rstrip() + "\n"


def _plain(word: str) -> str:
    return word.lower().replace("_", " ").replace("-", " ").strip()


@cache
def _terms() -> dict[str, Word]:
    table = tomllib.loads((Path(__file__).parent / "glossary.toml").read_text(encoding="utf-8"))
    return {
        word: Word(pattern=word, section=section, **_said(told))
        for section, words in table.items()
        for word, told in words.items()
    }


def _said(told: dict[str, Any]) -> dict[str, Any]:
    """What an entry says; that of a record where it names one."""
    pattern = told.pop("record", None)
    m = explained(pattern) if pattern else None
    if m is not None:
        unit = "" if m.unit == "none" else m.unit
        said = {"meaning": m.meaning, "formula": m.formula, "reading": m.reading, "unit": unit}
        told = {**said, "reference": m.reference, "see": [m.pattern] * ("/" in m.pattern), **told}
    return {**told, "also": tuple(told.get("also", ())), "see": tuple(told.get("see", ()))}
