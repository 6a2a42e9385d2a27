"""The shelf: which runs lie below a folder, found without leaving it."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eqtoolbox.report.words import printable

DEEP = 6  # folders within folders that are looked into
MANY = 20_000  # folders that are looked into at all
FILES = ("run.json", "records.jsonl", "events.jsonl", "arrays.bin")  # what a page is made of


@dataclass(frozen=True, kw_only=True)
class Place:
    """A run directory and the state of its files."""

    key: str  # its path below the folder, printable
    path: Path  # real: no part of it is a link
    version: str  # another one whenever a file of the run was written or exchanged
    written: float  # unix seconds of the last write


class RunShelf:
    """The runs below a folder, by key; links are not followed, hidden folders not looked into.

    Whatever is asked for is looked up among the runs that were found, so that no name, however
    it is spelled, leads anywhere else.

    Args:
        root: the folder; it may hold a run itself.

    Raises:
        NotADirectoryError: it is none.

    Example:
        >>> import pathlib, tempfile
        >>> home = pathlib.Path(tempfile.mkdtemp())
        >>> (home / "a" / "seed 0").mkdir(parents=True)
        >>> (home / "a" / "seed 0" / "run.json").write_text("{}")
        2
        >>> list(RunShelf(home).places())
        ['a/seed 0']
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.realpath(root))
        if not self.root.is_dir():
            raise NotADirectoryError(
                f"expected a folder with runs below it, got {os.fspath(root)!r}, which is "
                f"{'a file' if self.root.exists() else 'not there'}"
            )

    def places(self) -> dict[str, Place]:
        """The runs that are there now, by key, sorted."""
        found: dict[str, Place] = {}
        for path, files in self._runs():
            key = printable(path.relative_to(self.root).as_posix())
            key = self.root.name if key == "." else key
            while key in found:  # another name that is printed alike
                key += "'"
            found[key] = _place(key, path, files)
        return dict(sorted(found.items()))

    def _runs(self) -> Iterator[tuple[Path, dict[str, os.stat_result]]]:
        """Folders that hold the files of a run, with the state of these files."""
        waiting, looked = [(self.root, 0)], 0
        while waiting and looked < MANY:
            (folder, depth), looked = waiting.pop(), looked + 1
            files: dict[str, os.stat_result] = {}
            try:
                with os.scandir(folder) as inside:
                    for entry in inside:
                        if entry.name in FILES:
                            files[entry.name] = entry.stat(follow_symlinks=False)
                        elif entry.is_dir(follow_symlinks=False) and entry.name[0] != ".":
                            waiting += [(folder / entry.name, depth + 1)] if depth < DEEP else []
            except OSError:  # not ours to read, or gone meanwhile
                continue
            if any(name in files and stat.S_ISREG(files[name].st_mode) for name in FILES[:2]):
                yield folder, files


def certain(place: Place) -> Path:
    """The path of a run, once more made sure to be no link by now.

    Raises:
        OSError: it is, or a folder on the way to it.
    """
    if os.path.realpath(place.path) != os.fspath(place.path):
        raise OSError(errno.ELOOP, f"{place.key!r} is a link by now, which is not followed")
    return place.path


def _place(key: str, path: Path, files: dict[str, os.stat_result]) -> Place:
    state = [(n, s.st_size, s.st_mtime_ns, s.st_ino) for n, s in sorted(files.items())]
    version = hashlib.blake2s(repr(state).encode(), digest_size=8).hexdigest()
    written = max(s.st_mtime for s in files.values())
    return Place(key=key, path=path, version=version, written=written)
