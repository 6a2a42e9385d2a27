"""A growing run: read once, and from then on only what was appended."""

from contextlib import suppress
from typing import Any

from eqtoolbox.record.files import Folder
from eqtoolbox.report.directory import Oddities, events_of, facts, records_of
from eqtoolbox.report.following import Appended
from eqtoolbox.report.run import Run
from eqtoolbox.report.table import Table


class Growing(Run):
    """A run that is read on by `more`; a line whose end is not written yet waits for it.

    Args, Raises: as `Run`.

    Example:
        >>> import pathlib, tempfile
        >>> home = pathlib.Path(tempfile.mkdtemp())
        >>> line = '{"step": %d, "name": "training/loss", "value": 2.5}\\n'
        >>> _ = (home / "records.jsonl").write_text(line % 0)
        >>> run = Growing(home)
        >>> with (home / "records.jsonl").open("a") as file:
        ...     _ = file.write(line % 1)
        >>> run.last_step, run.more(), run.last_step, run.more()
        (0, True, 1, False)
    """

    written = 0.0  # unix seconds of the last write
    _state: tuple[Any, ...] = ()
    _inode = 0  # of records.jsonl

    def more(self) -> bool:
        """Read what was added; whether there was anything. Rows given out before are void then.

        A run that another one took the place of, or that is shorter by now, is read anew.

        Raises:
            OSError: there is no reading it any more.
        """
        folder = Folder(self.path)
        try:
            before = self._state
            self._state = _state(folder)
            if self._state == before:
                return False
            info, told = facts(folder, Oddities()) or self.info, folder.look("records.jsonl")
            inode = self._inode if told is None else told.st_ino
            shorter = told is not None and told.st_size < self._records.start
            if shorter or inode != self._inode or info.get("started") != self.info.get("started"):
                self._begin()
            self._inode, self.info = inode, info
            self._take(folder)
            self.written = max((s[2] for s in self._state), default=0) / 1e9
        finally:
            folder.close()
        return True

    def _read(self) -> None:
        self._begin()
        self.more()

    def _begin(self) -> None:
        self._records, self._happened = Appended("records.jsonl"), Appended("events.jsonl")
        self._table, self._odd = Table(), Oddities()
        self.events.clear()

    def _take(self, folder: Folder) -> None:
        with suppress(OSError):  # a link: the records can be read without
            self.events += events_of(self._happened.rows(folder), self._odd)
        rows = records_of(self._records.rows(folder), self._odd, self.info.get("format") or 1)
        for row in rows:
            self._table.add(row)
        self._table.close()
        for cached in ("_names", "_arrays", "_found"):
            self.__dict__.pop(cached, None)
        self.events += self._odd.events(self.last_step)


def _state(folder: Folder) -> tuple[Any, ...]:
    """What tells that a file of the run was written: which one, its size and its time."""
    names = ("run.json", "records.jsonl", "events.jsonl")
    found = ((name, folder.look(name)) for name in names)
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in found if s is not None)
