"""A run: everything that one training left in its run directory, read back."""

import html
import math
import operator
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.arrays import frames
from eqtoolbox.record import Record
from eqtoolbox.report.directory import facts, nearest, require_run, rows

if TYPE_CHECKING:
    from eqtoolbox.report.finding import Finding


class Run:
    """The records, events and facts of one run directory, finished or still being written.

    A record that a resumed run repeats replaces the earlier one of the same (step, name). Lines
    that a kill tore are left out and counted in `torn`. What is written later needs a new `Run`.

    Args:
        path: the run directory.

    Raises:
        FileNotFoundError: there is no such directory.
        NotADirectoryError: the path is a file.
        ValueError: the directory holds no run.

    Example:
        >>> import pathlib, tempfile
        >>> home = pathlib.Path(tempfile.mkdtemp())
        >>> line = '{"step": 4, "name": "training/loss", "value": 2.5}'
        >>> _ = (home / "records.jsonl").write_text(line)
        >>> Run(home).series("training/loss")
        (array([4]), array([2.5]))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        require_run(self.path)
        self.torn = 0  # lines that could not be read
        info = facts(self.path)
        self.torn += info is None
        self.info: dict[str, Any] = info or {}
        self.events: list[dict[str, Any]] = list(self._rows("events.jsonl"))
        self._records: dict[str, dict[int, Record]] = {}
        for row in self._rows("records.jsonl"):
            self._keep(row)
        for name, by_step in self._records.items():
            self._records[name] = dict(sorted(by_step.items()))

    def names(self) -> list[str]:
        """Names of all records, sorted, eigenvalue 10 after eigenvalue 9."""
        return sorted(self._records, key=_natural)

    def targets(self, quantity: str) -> list[str]:
        """Symmetries, families or ranks that a quantity was measured for.

        Args:
            quantity: the first two words of a name, as in "conservation/drift".
        """
        prefix = quantity + "/"
        return [name.removeprefix(prefix) for name in self.names() if name.startswith(prefix)]

    def records(self, name: str | None = None) -> list[Record]:
        """Records of one name by step, or all of them by step; the last of each (step, name).

        Raises:
            KeyError: no record has this name.
        """
        if name is not None:
            return list(self._of(name).values())
        everything = [r for by_step in self._records.values() for r in by_step.values()]
        return sorted(everything, key=lambda r: r.step)

    def series(
        self, name: str, *, include_missing: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps and values of one name.

        Args:
            name: full record name.
            include_missing: keep the rows that carry no certified number (status not "ok", or
                NaN); their value is whatever was recorded, mostly NaN.

        Returns:
            steps and values, both of shape (n,), by increasing step.

        Raises:
            KeyError: no record has this name; the message names the nearest.
        """
        rows = self._rows_of(name, include_missing)
        steps = np.array([r.step for r in rows], dtype=np.int64)
        return steps, np.array([r.value for r in rows], dtype=np.float64)

    def stderr(self, name: str, *, include_missing: bool = False) -> NDArray[np.float64]:
        """Error of every value of `series(name)`, shape (n,); NaN where none was recorded."""
        return np.asarray(self.column(name, "stderr", include_missing=include_missing), np.float64)

    def column(self, name: str, field: str, *, include_missing: bool = False) -> NDArray[Any]:
        """One field of the records behind `series(name)`, shape (n,).

        Args:
            name: full record name.
            field: a field of `Record`, such as "floor", "verdict" or "note".

        Returns:
            float64 with NaN for empty entries when the field is a number, objects otherwise.

        Raises:
            KeyError: no record has this name, or records have no such field.
        """
        known = Record.__dataclass_fields__
        if field not in known:
            raise KeyError(f"records have no field {field!r}; {nearest(field, list(known))}")
        values = [getattr(r, field) for r in self._rows_of(name, include_missing)]
        if known[field].type in (str, "str") or any(isinstance(v, str) for v in values):
            return np.array(values, dtype=object)
        return np.array([np.nan if v is None else v for v in values], dtype=np.float64)

    def array(self, name: str) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """The vectors behind the records of one name, where they were kept.

        Args:
            name: full record name, one of `arrays()`.

        Returns:
            steps (n,) and values (n, ...), by increasing step; a step that a resumed run repeats
            counts once. Vectors of another shape than the newest are left out.

        Raises:
            KeyError: no vectors of this name were kept; the message names the nearest.
        """
        kept = self._arrays.get(name)
        if not kept:
            raise KeyError(f"no array is named {name!r}; {nearest(name, self.arrays())}")
        shape = kept[max(kept)].shape
        steps = sorted(step for step, values in kept.items() if values.shape == shape)
        return np.array(steps, dtype=np.int64), np.stack([kept[step] for step in steps])

    def arrays(self) -> list[str]:
        """Names for which `array` has vectors, sorted."""
        return sorted(self._arrays, key=_natural)

    @cached_property
    def _arrays(self) -> dict[str, dict[int, NDArray[Any]]]:
        found: dict[str, dict[int, NDArray[Any]]] = {}
        for array in frames(self.path / "arrays.bin"):
            if array is None:
                self.torn += 1
            else:
                found.setdefault(array.name, {})[array.step] = array.values
        return found

    def frame(self, long: bool = False) -> Any:
        """The run as a pandas DataFrame.

        Args:
            long: one row a record with all its fields; otherwise one row a step, one column a
                name, NaN where nothing was certified.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "Run.frame needs pandas, which eqtoolbox does not install: pip install pandas; "
                "Run.series gives numpy arrays without it"
            ) from error
        if long:
            columns = list(Record.__dataclass_fields__)
            rows = [[getattr(r, c) for c in columns] for r in self.records()]
            return pd.DataFrame(rows, columns=columns)
        certified = {
            name: pd.Series(values, index=steps, dtype=float)
            for name in self.names()
            for steps, values in [self.series(name)]
        }
        table = pd.DataFrame(certified, columns=self.names()).sort_index()
        return table.rename_axis(index="step")

    @property
    def last_step(self) -> int:
        """The newest step that has a record; 0 for an empty run."""
        return max((max(by_step) for by_step in self._records.values()), default=0)

    def findings(self) -> "list[Finding]":
        """What the run shows, in plain words: alarms first, then warnings, notes, good news."""
        from eqtoolbox.report.findings import find

        return find(self)

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def __repr__(self) -> str:
        count = sum(len(by_step) for by_step in self._records.values())
        return f"Run({str(self.path)!r}: {len(self._records)} names, {count} records)"

    def _repr_html_(self) -> str:
        items = "".join(
            f"<li><b>{f.level}</b>: {html.escape(f.text)}</li>" for f in self.findings()
        )
        return f"<p><code>{html.escape(repr(self))}</code></p><ul>{items}</ul>"

    def _of(self, name: str) -> dict[int, Record]:
        if name not in self._records:
            raise KeyError(f"no record is named {name!r}; {nearest(name, self.names())}")
        return self._records[name]

    def _rows_of(self, name: str, include_missing: bool) -> list[Record]:
        return [r for r in self._of(name).values() if include_missing or certified(r)]

    def _keep(self, row: dict[str, Any]) -> None:
        try:
            record = Record.from_json(row)
            math.isnan(record.value)  # raises when a later version wrote something else
            self._records.setdefault(record.name, {})[operator.index(record.step)] = record
        except (TypeError, ValueError):
            self.torn += 1

    def _rows(self, file: str) -> Iterator[dict[str, Any]]:
        for row in rows(self.path / file):
            if row is None:
                self.torn += 1
            else:
                yield row


def certified(record: Record) -> bool:
    """Whether a record carries a number that its probe stands behind."""
    return record.status == "ok" and not math.isnan(record.value)


def _natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    words = name.split("/")
    return tuple((w.isdigit(), int(w) if w.isdigit() else 0, w) for w in words)
