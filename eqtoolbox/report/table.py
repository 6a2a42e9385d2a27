"""A table: the rows of a run in columns, so that a million of them take little memory."""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.record.facts import NO_FACTS, Facts
from eqtoolbox.record.record import FIELDS, Record

NUMBERS = ("value", "stderr", "floor", "seconds", "matvecs")
_TEXTS = ("unit", "note", "facts")
_CHOICES = ("status", "verdict", "mode", "hessian")
_CODES = dict.fromkeys(("name", *_TEXTS, *_CHOICES, "segment"), "i") | dict.fromkeys(NUMBERS, "d")
_CODES |= {"step": "q", "given": "b"}  # given: which of NUMBERS are not None, a bit each
LARGEST = 1e100  # beyond, sums and squares of numbers leave float64: they count as infinite
_ERRORS = ("stderr", "floor")
_BITS = {field: 1 << bit for bit, field in enumerate(NUMBERS) if field != "value"}
_NEAR = 4096  # texts within which equal ones are kept once
_CHUNK = 2048  # records made at a time


class Words:
    """Texts in one block of bytes; equal ones that come near each other are kept once."""

    def __init__(self) -> None:
        self._block = bytearray()
        self._ends = array("q", [0])
        self._near: dict[str, int] = {}

    def code(self, text: str) -> int:
        """The number by which `text` is found again."""
        known = self._near.get(text)
        if known is not None:
            return known
        if len(self._near) >= _NEAR:
            self._near.clear()
        self._block += text.encode("utf-8", "replace")  # half of a surrogate pair is no text
        self._ends.append(len(self._block))
        self._near[text] = len(self._ends) - 2
        return self._near[text]

    def __getitem__(self, code: int) -> str:
        return self._block[self._ends[code] : self._ends[code + 1]].decode()


class Said:
    """Facts as words, and made again when they are asked for."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def code(self, facts: Facts) -> int:
        """The number by which `facts` are found again."""
        return self._words.code("" if facts is NO_FACTS else facts.written())

    def __getitem__(self, code: int) -> Facts:
        return Facts.read(self._words[code])


class Table:
    """Rows sorted by name and step, the last of each (step, name); names as they first came.

    `add` rows, then `close`; more may follow, and the table is read after the next `close`.
    """

    def __init__(self) -> None:
        self.names: dict[str, int] = {}  # the code of each
        self._choices: dict[str | None, int] = {}
        self._texts = Words()
        self._words: dict[str, Any] = dict.fromkeys(_TEXTS, self._texts)  # by their codes
        self._words["facts"] = Said(self._texts)
        self._waiting: list[tuple[Any, ...]] = []
        self._raw: dict[str, Any] = {field: array(code) for field, code in _CODES.items()}
        self._columns: dict[str, NDArray[Any]] = {f: np.zeros(0, c) for f, c in _CODES.items()}
        self._starts: NDArray[np.int64] = np.zeros(1, np.int64)

    def add(self, values: tuple[Any, ...]) -> None:
        """Add a row: `checked` values in the order of the fields of a record."""
        self._waiting.append(values)
        if len(self._waiting) == _CHUNK:
            self._take()

    def _take(self) -> None:
        """Move the rows that wait into the columns."""
        if not self._waiting:
            return
        fields = dict(zip(FIELDS, zip(*self._waiting, strict=True), strict=True))
        given = np.zeros(len(self._waiting), np.int8)
        for bit, field in enumerate(NUMBERS):
            values = fields[field]
            given |= np.array([v is not None for v in values], np.int8) << bit
            self._raw[field].extend([0.0 if v is None else v for v in values])
        self._raw["given"].extend(given.tolist())
        self._raw["step"].extend(fields["step"])
        self._raw["segment"].extend(fields["segment"])
        known: dict[Any, int]
        for field in ("name", *_CHOICES):
            known = self.names if field == "name" else self._choices
            self._raw[field].extend([known.setdefault(v, len(known)) for v in fields[field]])
        for field in _TEXTS:
            code, values = self._words[field].code, fields[field]
            alike = len(set(map(id, values))) == 1  # as units and facts mostly are
            codes = [code(values[0])] * len(values) if alike else map(code, values)
            self._raw[field].extend(codes)
        self._waiting.clear()

    def close(self) -> None:
        """Sort the rows, and leave out those that a later one replaces."""
        self._take()
        step, name = (
            np.concatenate([self._columns[field], self._raw[field]]) for field in ("step", "name")
        )
        order = np.lexsort((step, name))
        step, name = step[order], name[order]
        last = np.ones(len(order), bool)
        last[:-1] = (step[1:] != step[:-1]) | (name[1:] != name[:-1])
        order = order[last]
        for field, code in _CODES.items():  # one by one, so that no two copies of all are held
            both = [self._columns.pop(field), self._raw.pop(field)]
            self._columns[field], self._raw[field] = np.concatenate(both)[order], array(code)
        self._starts = np.searchsorted(self._columns["name"], np.arange(len(self.names) + 1))
        said: list[Any] = list(self._choices)
        self._words |= dict.fromkeys(_CHOICES, said) | {"name": list(self.names)}

    def __len__(self) -> int:
        return len(self._columns["step"])

    def of(self, name: str) -> "Rows":
        """Rows of a name, by step."""
        place = self.names[name]
        return Rows(self, np.arange(self._starts[place], self._starts[place + 1]))

    def by_step(self) -> "Rows":
        """All rows by step; those of one step in the order in which their names first came."""
        return Rows(self, np.lexsort((self._columns["name"], self._columns["step"])))

    def numbers(self, field: str, rows: NDArray[np.int64], sound: bool) -> NDArray[np.float64]:
        """One of NUMBERS, NaN where it is None; `sound`: where it is no error or floor, too."""
        values = np.asarray(self._columns[field][rows], np.float64)
        given = (self._columns["given"][rows] >> NUMBERS.index(field) & 1).astype(bool)
        if sound and field in _ERRORS:
            given &= (values >= 0) & (values <= LARGEST)
        values[~given] = np.nan
        return values

    def steps(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(self._columns["step"][rows]).view(np.int64)  # by its usual name

    def having(self, status: str, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows have this status."""
        return np.asarray(self._columns["status"][rows] == self._choices.get(status, -1))

    def attempts(self) -> dict[tuple[str, str], int]:
        """At how many steps a probe has rows of a status, by (probe, status)."""
        probes, of = self._probes()
        said = self._words["status"]
        counts = self._steps(of * len(said) + self._columns["status"])
        return {
            (p, str(s)): n for (p, s), n in zip(product(probes, said), counts, strict=False) if n
        }

    def tried(self) -> dict[str, int]:
        """At how many steps a probe has rows beside those that the budget left out."""
        probes, of = self._probes()
        rows = np.flatnonzero(~self.having("skipped_budget", np.arange(len(self))))
        return {p: n for p, n in zip(probes, self._steps(of, rows), strict=False) if n}

    def _probes(self) -> tuple[list[str], NDArray[np.int64]]:
        """The probes, and which of them each row is of."""
        probes: dict[str, int] = {}
        of = [probes.setdefault(n.split("/", 1)[0], len(probes)) for n in self.names]
        return list(probes), np.array(of, np.int64)[self._columns["name"]]

    def _steps(self, group: NDArray[np.int64], rows: Any = slice(None)) -> list[int]:
        """How many steps each group of rows has."""
        group, step = group[rows], self._columns["step"][rows]
        order = np.lexsort((step, group))
        group, step = group[order], step[order]
        new = np.ones(len(order), bool)
        new[1:] = (group[1:] != group[:-1]) | (step[1:] != step[:-1])
        return list(np.bincount(group[new]).tolist())

    def records(self, rows: NDArray[np.int64], sound: bool) -> Iterator[Record]:
        """Rows as records, made as they are asked for."""
        for i in range(0, len(rows), _CHUNK):
            some = rows[i : i + _CHUNK]
            given = self._columns["given"][some].tolist()
            lists = [self._values(field, some, given, sound) for field in FIELDS]
            yield from map(Record.of, zip(*lists, strict=True))

    def _values(
        self, field: str, rows: NDArray[np.int64], given: list[int], sound: bool
    ) -> list[Any]:
        column: list[Any] = self._columns[field][rows].tolist()
        if field in self._words:
            words = self._words[field]
            return [words[code] for code in column]
        if field not in _BITS:
            return column
        bit, kind = _BITS[field], int if field == "matvecs" else float
        values = [kind(v) if g & bit else None for v, g in zip(column, given, strict=True)]
        if sound and field in _ERRORS:
            values = [v if v is not None and 0 <= v <= LARGEST else None for v in values]
        return values


class Rows(Sequence[Record]):
    """Some rows of a table, as records that are made when they are asked for."""

    def __init__(
        self,
        table: Table,
        rows: NDArray[np.int64],
        *,
        sound: bool = False,
        floors: NDArray[np.float64] | None = None,
    ) -> None:
        self._table, self._rows, self._sound, self._floors = table, rows, sound, floors

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Record | Rows":
        if isinstance(index, slice):
            return self.where(index)
        return next(iter(self.where(slice(index, index + 1 or None))))

    def __iter__(self) -> Iterator[Record]:
        made = self._table.records(self._rows, self._sound)
        if self._floors is None:
            return made
        floors = (None if math.isnan(f) else f for f in self._floors.tolist())
        return (replace(r, floor=f) for r, f in zip(made, floors, strict=True))

    def where(self, kept: NDArray[Any] | slice) -> "Rows":
        """The rows that are marked, or those at these places."""
        floors = None if self._floors is None else self._floors[kept]
        return Rows(self._table, self._rows[kept], sound=self._sound, floors=floors)

    def sound(self) -> "Rows":
        """The same with None for errors and floors that are negative or beyond all numbers."""
        return Rows(self._table, self._rows, sound=True, floors=self._floors)

    def with_floors(self, floors: NDArray[np.float64]) -> "Rows":
        """The same with other floors, (n,), NaN for none."""
        return Rows(self._table, self._rows, sound=self._sound, floors=floors)

    def numbers(self, field: str) -> NDArray[np.float64]:
        """value, stderr, floor, seconds or matvecs of each, NaN where there is none."""
        if field == "floor" and self._floors is not None:
            return self._floors
        return self._table.numbers(field, self._rows, self._sound)

    @property
    def steps(self) -> NDArray[np.int64]:
        return self._table.steps(self._rows)

    def having(self, status: str) -> NDArray[np.bool_]:
        """Which of them have this status."""
        return self._table.having(status, self._rows)
