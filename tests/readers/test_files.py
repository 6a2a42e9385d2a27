"""Only plain files of the run directory itself are read and written, never what they point to."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eqtoolbox.command.cli import main
from eqtoolbox.record.files import Folder, read_object
from eqtoolbox.report import Run
from eqtoolbox.report.page import write_page
from eqtoolbox.sinks.jsonl import RunDirectory
from tests.report.runs import series, write_run

PRECIOUS = "precious\n"
Make = Callable[[Path, Path], object]
NO_FILES: dict[str, Make] = {
    "a link": lambda path, victim: path.symlink_to(victim),
    "a link to nothing": lambda path, victim: path.symlink_to("nowhere"),
    "a link to itself": lambda path, victim: path.symlink_to(path.name),
    "a device": lambda path, victim: path.symlink_to("/dev/zero"),
    "a pipe": lambda path, victim: os.mkfifo(path),
    "a directory": lambda path, victim: path.mkdir(),
}
FILES = ("records.jsonl", "events.jsonl", "run.json", "arrays.bin")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the user's, outside every run."""
    path = tmp_path / "victim.txt"
    path.write_text(PRECIOUS)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", series("training/loss", [2.0, 1.0]))


def put(home: Path, file: str, kind: str, victim: Path) -> None:
    (home / file).unlink(missing_ok=True)
    NO_FILES[kind](home / file, victim)


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("file", FILES[1:])
def test_a_run_is_read_without_a_file_that_is_none(
    home: Path, victim: Path, file: str, kind: str
) -> None:
    assert Run(home).torn == 0
    put(home, file, kind, victim)
    run = Run(home)
    run.arrays()
    assert run.series("training/loss")[1].tolist() == [2.0, 1.0]
    assert run.torn == 1
    assert "expected a plain file" in run.events[-1]["message"]
    assert file in run.events[-1]["message"]


@pytest.mark.parametrize("kind", NO_FILES)
def test_records_that_are_no_file_are_refused(home: Path, victim: Path, kind: str) -> None:
    put(home, "records.jsonl", kind, victim)
    with pytest.raises(OSError, match=r"records\.jsonl is a .*expected a plain file"):
        Run(home)


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("file", FILES[:3])
def test_a_run_is_not_gone_on_with_through_a_file_that_is_none(
    home: Path, victim: Path, file: str, kind: str
) -> None:
    put(home, file, kind, victim)
    with pytest.raises(OSError, match="expected a plain file"):
        RunDirectory(home, resume=True)
    assert victim.read_text() == PRECIOUS


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_lies_in_the_place_of_a_draft_is_not_written_through(
    home: Path, victim: Path, kind: str
) -> None:
    if kind == "a directory":
        kind = "a link"  # a directory is no way out
    put(home, "run.json.new", kind, victim)
    put(home, "report.html.new", kind, victim)
    RunDirectory(home, resume=True).close()
    write_page(Run(home), home)
    assert victim.read_text() == PRECIOUS
    assert (home / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert Run(home).info["segments"] == 2
    assert not list(home.glob("*.new"))


def test_a_page_replaces_a_link_and_leaves_what_it_points_to(home: Path, victim: Path) -> None:
    (home / "report.html").symlink_to(victim)
    assert main(["report", str(home)]) == 0
    assert victim.read_text() == PRECIOUS
    assert not (home / "report.html").is_symlink()


def test_a_page_is_not_written_into_a_directory_outside(home: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (home / "report.html").symlink_to(tmp_path / "outside")
    assert main(["report", str(home)]) == 0
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_stale_draft_is_made_anew_and_a_failed_one_is_taken_away(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    (tmp_path / "a.new").write_bytes(b"left by a kill, and longer")
    folder.replace("a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    (tmp_path / "d").mkdir()
    with pytest.raises(OSError, match="directory"):
        folder.replace("d", b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "d"]
    folder.close()


def test_rows_are_not_appended_to_a_file_with_a_second_name(home: Path, tmp_path: Path) -> None:
    os.link(home / "records.jsonl", tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(OSError, match="second name"):
        RunDirectory(home, resume=True)
    assert (tmp_path / "elsewhere").read_bytes() == before
    assert Run(home).torn == 0


def test_an_archive_cannot_plant_code_where_python_starts(home: Path, tmp_path: Path) -> None:
    """A `.pth` file of a site directory runs each line that begins with `import`."""
    (tmp_path / "site").mkdir()
    (home / "report.html.new").symlink_to("../site/evil.pth")
    command = [sys.executable, "-m", "eqtoolbox", "report", str(home)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    assert list((tmp_path / "site").iterdir()) == []


@pytest.mark.parametrize("depth", [30, 900, 100_000])
def test_nesting_ends(tmp_path: Path, depth: int) -> None:
    (tmp_path / "run.json").write_text('{"a":' * depth + "1" + "}" * depth)
    folder = Folder(tmp_path)
    found = read_object(folder, "run.json")
    assert found is None or "1" not in repr(found)
    folder.close()


def test_without_directory_handles_files_are_found_by_their_path(
    home: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    monkeypatch.setattr("eqtoolbox.record.files._HELD_OPEN", False)
    again = RunDirectory(home, resume=True)
    again.close()
    assert Run(home).info["segments"] == 2
    (home / "run.json.new").symlink_to(victim)
    RunDirectory(home, resume=True).close()
    assert victim.read_text() == PRECIOUS


def test_a_device_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page written to it would take its place, for every program of the machine."""
    device = os.stat(os.devnull)
    monkeypatch.setattr(Folder, "look", lambda self, name: device)
    folder = Folder(tmp_path)
    with pytest.raises(OSError, match="is a device, expected a plain file"):
        folder.replace("page.html", b"text")
    folder.close()
    assert [*tmp_path.iterdir()] == []


def test_a_page_that_cannot_be_written_says_where_and_why(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write the page to .*file/page\.html .*name another"):
        write_page(Run(home), tmp_path / "file" / "page.html")

    def full(self: Folder, name: str, mode: str, **_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = Run(home)
    monkeypatch.setattr(Folder, "open", full)
    with pytest.raises(OSError, match=r"cannot write the page to .*No space left on device"):
        write_page(run, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
