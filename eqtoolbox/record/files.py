"""Files of a run directory: opened only where they are plain files of that very directory.

A directory may have come from somebody else's archive: a link, pipe or device in place of a file
is refused before it is opened, and drafts are made afresh, so that nothing outside is touched.
"""

import errno
import json
import math
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

LIMIT = 1 << 24  # bytes of a line, or of a file that holds one object: beyond, it is neither
DEEP = 24  # nesting of lists and objects that is kept

_DECODER = json.JSONDecoder()
_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_PLAIN |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_MODES = {
    "rb": os.O_RDONLY,
    "ab": os.O_RDWR | os.O_APPEND | os.O_CREAT,
    "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
}
_HELD_OPEN = os.open in os.supports_dir_fd and hasattr(os, "O_DIRECTORY")  # not on Windows


class Folder:
    """A directory held open: wherever it is moved, files are those inside it, never another's.

    Args:
        path: an existing directory.

    Raises:
        OSError: it is missing, or no directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd: int | None = None
        if _HELD_OPEN:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._release = weakref.finalize(self, os.close, self._fd)

    def open(self, name: str, mode: str, *, buffering: int = -1) -> BinaryIO:
        """Open a file: "rb" reads, "ab" appends (and can read), "xb" makes a new one.

        Raises:
            FileNotFoundError: nothing to read.
            OSError: it is no plain file, or one to append to that has a second name elsewhere.
        """
        found = self.look(name)
        if found is not None and mode != "xb":
            self._require_plain(name, found)
        file = os.open(self._at(name), _MODES[mode] | _PLAIN, 0o666, dir_fd=self._fd)
        try:
            opened = os.fstat(file)
            self._require_plain(name, opened)
            if mode == "ab" and opened.st_nlink > 1:
                self._refuse(name, "has a second name (a hard link), and rows would go there too")
        except OSError:
            os.close(file)
            raise
        stream = os.fdopen(file, {"ab": "a+b", "xb": "wb"}.get(mode, mode), buffering)
        return cast(BinaryIO, stream)

    def look(self, name: str) -> os.stat_result | None:
        """What is there under a name, a link not followed; None for nothing."""
        try:
            return os.stat(self._at(name), dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def holds(self, file: BinaryIO, name: str) -> bool:
        """Whether an open file is still the one that has this name here."""
        there, ours = self.look(name), os.fstat(file.fileno())
        return there is not None and (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def replace(self, name: str, content: bytes, *, sync: bool = False) -> None:
        """Write a file whole, or leave the old one: by a draft that is made afresh.

        Whatever lies in the draft's place or the file's, such as a link, is replaced itself; but a
        device is not, which is no file of anybody's.

        Raises:
            OSError: there is no writing it.
        """
        found = self.look(name)
        if found is not None and _kind(found.st_mode) == "a device":
            self._require_plain(name, found)
        draft = f"{name}.new"
        self.remove(draft)
        try:
            with self.open(draft, "xb") as file:
                file.write(content)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(self._at(draft), self._at(name), src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            with suppress(OSError):
                os.unlink(self._at(draft), dir_fd=self._fd)
            raise
        if sync and self._fd is not None:
            os.fsync(self._fd)

    def remove(self, name: str) -> None:
        """Take a file away, or a link itself; nothing where there is none."""
        with suppress(FileNotFoundError):
            os.unlink(self._at(name), dir_fd=self._fd)

    def close(self) -> None:
        if self._fd is not None:
            self._release()

    def _at(self, name: str) -> str | Path:
        return name if self._fd is not None else self.path / name

    def _require_plain(self, name: str, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            self._refuse(name, f"is {_kind(found.st_mode)}, expected a plain file")

    def _refuse(self, name: str, why: str) -> None:
        raise OSError(
            errno.EPERM,
            f"{self.path / name} {why}; put a copy of the file there, or take it away",
        )


def rows(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Numbers of the lines from 1 and their JSON objects, None where a line is no whole one.

    A line is read at a time, so that memory does not grow with the file.
    """
    number = 0
    while line := file.readline(LIMIT):
        number += 1
        whole = line
        while len(line) == LIMIT and not line.endswith(b"\n"):
            whole, line = b"", file.readline(LIMIT)  # the rest of a line that is no row
        if not whole:
            yield number, None
        elif not whole.isspace():
            yield number, parsed(whole)


def parsed(text: bytes) -> dict[str, Any] | None:
    """The JSON object that a text is, None when it is none or cannot be held."""
    try:
        words = text.decode().strip()
        found, end = _DECODER.raw_decode(words)
    except (ValueError, RecursionError, MemoryError):
        return None
    return found if isinstance(found, dict) and end == len(words) else None


def read_object(folder: Folder, name: str) -> dict[str, Any] | None:
    """The JSON object of a file: empty when the file is missing, None when there is no reading it.

    Numbers are finite, texts are valid, and nesting ends: what comes can be written again.

    Raises:
        OSError: the file is no plain file, or not ours to read.
    """
    try:
        with folder.open(name, "rb") as file:
            text = file.read(LIMIT + 1)
    except FileNotFoundError:
        return {}
    found = None if len(text) > LIMIT else parsed(text)
    return None if found is None else _strict(found, DEEP)


def _strict(value: Any, deep: int) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_strict(k, 0): _strict(v, deep - 1) for k, v in value.items()} if deep else None
    if isinstance(value, list):
        return [_strict(v, deep - 1) for v in value] if deep else None
    return value


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFREG: "a plain file", stat.S_IFLNK: "a link", stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "a device")
