"""The log of a run: everything that one training left in its run directory, read back."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.record.arrays import frames
from eqtoolbox.record.files import Folder
from eqtoolbox.record.record import Record
from eqtoolbox.report.directory import (
    Oddities,
    events,
    facts,
    nearest,
    records,
    require_run,
)
from eqtoolbox.report.table import NUMBERS, Rows, Table


class Log:
    """The records, events and facts of one run directory, finished or still being written.

    A record that a resumed run repeats replaces the earlier one of the same (step, name). Whatever
    is not what a monitor writes, such as a line that a kill tore, is left out, counted in `torn`
    and told among the `events`, the first ones by file and line. What is written later needs a
    new one.

    Args:
        path: the run directory.

    Raises:
        TypeError: it is no path.
        FileNotFoundError: there is no such directory.
        NotADirectoryError: the path is a file.
        ValueError: the directory holds no run.
        OSError: it cannot be read, or records.jsonl is no plain file.

    Example:
        >>> import pathlib, tempfile
        >>> home = pathlib.Path(tempfile.mkdtemp())
        >>> line = '{"step": 4, "name": "training/loss", "value": 2.5}'
        >>> _ = (home / "records.jsonl").write_text(line)
        >>> Log(home).series("training/loss")
        (array([4]), array([2.5]))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike) or not str(path).strip():
            raise TypeError(
                f"path must be the run directory, got {path!r}; give what attach was given as "
                'run_dir=, such as "runs/first"'
            )
        self.path = Path(path)
        require_run(self.path)
        self._odd = Oddities()
        self.info: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self._table = Table()
        self._read()

    def _read(self) -> None:
        folder = Folder(self.path)
        self.info = facts(folder, self._odd)
        self.events += events(folder, self._odd)
        for row in records(folder, self._odd, self.info.get("format") or 1):
            self._table.add(row)
        self._table.close()
        folder.close()
        self.events += self._odd.events(self.last_step)

    @property
    def torn(self) -> int:
        """How many lines, facts and arrays could not be read."""
        return self._odd.count

    def names(self) -> list[str]:
        """Names of all records, sorted, eigenvalue 10 after eigenvalue 9."""
        return list(self._names)

    @cached_property
    def _names(self) -> list[str]:
        return sorted(self._table.names, key=_natural)

    def targets(self, quantity: str) -> list[str]:
        """Symmetries, families or ranks that a quantity was measured for.

        Args:
            quantity: the first two words of a name, as in "conservation/drift".
        """
        prefix = quantity + "/"
        return [name.removeprefix(prefix) for name in self._names if name.startswith(prefix)]

    def records(self, name: str | None = None) -> list[Record]:
        """Records of one name by step, or all of them by step; the last of each (step, name).

        Raises:
            KeyError: no record has this name.
        """
        return list(self.rows(name))

    def rows(self, name: str | None = None) -> Rows:
        """The same as a sequence that makes each record when it is asked for.

        A run of a million records takes little memory this way, and their numbers come as arrays.
        """
        return self._table.by_step() if name is None else self._of(name)

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
        return rows.steps, rows.numbers("value")

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
        rows = self._rows_of(name, include_missing)
        if field in NUMBERS:
            return rows.numbers(field)
        values = [getattr(r, field) for r in rows]
        texts = known[field].type in (str, "str") or any(isinstance(v, str) for v in values)
        if texts or field == "facts":
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
        try:
            for array in frames(self.path / "arrays.bin"):
                if array is None:
                    self._odd.note("arrays.bin: a stretch is no whole frame")
                else:
                    found.setdefault(array.name, {})[array.step] = array.values
        except OSError as error:
            self._odd.note(str(error.strerror))
        self.events += self._odd.events(self.last_step)
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
        return int(self.rows().steps[-1]) if len(self._table) else 0

    def attempts(self) -> dict[tuple[str, str], int]:
        """At how many steps a probe has records of a status, by (probe, status)."""
        return self._table.attempts()

    def tried(self) -> dict[str, int]:
        """At how many steps a probe has records beside those that the budget left out."""
        return self._table.tried()

    def __contains__(self, name: str) -> bool:
        return name in self._table.names

    def __repr__(self) -> str:
        count = f"{len(self._table.names)} names, {len(self._table)} records"
        return f"{type(self).__name__}({str(self.path)!r}: {count})"

    def _of(self, name: str) -> Rows:
        if name not in self:
            raise KeyError(f"no record is named {name!r}; {nearest(name, self.names())}")
        return self._table.of(name)

    def _rows_of(self, name: str, include_missing: bool) -> Rows:
        rows = self._of(name)
        if include_missing:
            return rows
        return rows.where(rows.having("ok") & ~np.isnan(rows.numbers("value")))


def _natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    words = name.split("/")
    return tuple((w.isdigit(), int(w) if w.isdigit() else 0, w) for w in words)
