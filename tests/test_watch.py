"""`eqtoolbox watch` in processes of its own: a run that grows, a terminal, pipes, and Ctrl-C."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.report.runs import EVENTS, INFO, missing, rich_records, series, write_run

pytest.importorskip("rich")
COMMAND = (sys.executable, "-m", "eqtoolbox", "watch")


def begun(*arguments: str, terminal: bool = False, **environment: str) -> "Viewed":
    return Viewed(arguments, terminal, environment)


class Viewed:
    """A watching process and what it has written so far."""

    def __init__(self, arguments: tuple[str, ...], terminal: bool, env: dict[str, str]) -> None:
        self.text = ""
        lines = int(env.pop("lines", 60))
        self._read, write = os.openpty() if terminal else os.pipe()
        if terminal:
            import fcntl
            import struct
            import termios

            fcntl.ioctl(write, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 100, 0, 0))
        base = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=subprocess.PIPE,
            env={**base, "TERM": "xterm", **env},
            text=True,
        )
        os.close(write)

    def until(self, *words: str, seconds: float = 60.0) -> str:
        """What was written up to all these words."""
        end = time.monotonic() + seconds
        while not all(word in self.text for word in words):
            assert time.monotonic() < end, f"{words} not in {self.text!r}"
            if select.select([self._read], [], [], 0.1)[0]:
                try:
                    self.text += (more := os.read(self._read, 1 << 16)).decode()
                except OSError:  # the terminal has gone with its process
                    more = b""
                if not more:
                    assert all(word in self.text for word in words), self.text
        return self.text

    def ended(self) -> tuple[int, str]:
        """Exit code and complaints; whatever it still writes is read."""
        end = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < end:
            if select.select([self._read], [], [], 0.05)[0]:
                try:
                    self.text += os.read(self._read, 1 << 16).decode()
                except OSError:
                    break
        code = self.process.wait(60)
        while select.select([self._read], [], [], 0)[0]:
            try:
                more = os.read(self._read, 1 << 16)
            except OSError:
                break
            if not more:
                break
            self.text += more.decode()
        os.close(self._read)
        assert self.process.stderr is not None
        with self.process.stderr as said:
            return code, said.read()


def append(home: Path, step: int, value: float) -> None:
    with (home / "records.jsonl").open("a") as file:
        row = {"step": step, "name": "training/loss", "value": value}
        file.write(json.dumps(row) + "\n")


def test_a_growing_run_is_redrawn_and_its_end_ends_the_view(tmp_path: Path) -> None:
    home = write_run(tmp_path, series("training/loss", [3.0]), finished=None)
    view = begun(str(home), "--every", "0.05", terminal=True)
    view.until("step 0", "running")
    append(home, 41, 2.25)
    view.until("step 41", "2.25")
    append(home, 1042, 1.75)
    view.until("step 1,042", "1.75")
    (home / "run.json").write_text(json.dumps({**INFO, "finished": time.time()}))
    view.until("finished")
    assert view.ended() == (0, "")
    last = view.text.rsplit("\x1b[2K", 1)[-1]
    assert "step 1,042" in last and "finished" in last  # stays on the screen


def test_ctrl_c_ends_with_zero_and_the_view_stays(tmp_path: Path) -> None:
    home = write_run(tmp_path, series("training/loss", [3.0]), finished=None)
    view = begun(str(home), terminal=True)
    view.until("step 0", "running")
    view.process.send_signal(signal.SIGINT)
    assert view.ended() == (0, "")
    assert "step 0" in view.text.rsplit("\x1b[2K", 1)[-1]
    assert "\x1b[?25h" in view.text  # the cursor is back


def test_a_low_terminal_has_the_numbers_and_the_last_view_is_whole(tmp_path: Path) -> None:
    rows = [*rich_records(), *missing("noether/first_order/x", [0], "failed", "why not")]
    home = write_run(tmp_path, rows, events=EVENTS, finished=None)
    view = begun(str(home), terminal=True, lines="16")
    view.until("laws")
    assert "Try:" not in view.text and "resumed as segment" not in view.text
    view.process.send_signal(signal.SIGINT)
    assert view.ended() == (0, "")
    last = view.text.rsplit("\x1b[2K", 1)[-1]
    assert "Try:" in last and "resumed as segment" in last and "laws" in last


@pytest.mark.parametrize(
    ("arguments", "terminal", "environment"),
    [((), False, {}), (("--once",), True, {}), ((), True, {"TERM": "dumb"})],
    ids=["pipe", "once", "dumb terminal"],
)
def test_one_view_where_nothing_can_be_redrawn(
    tmp_path: Path, arguments: tuple[str, ...], terminal: bool, environment: dict[str, str]
) -> None:
    home = write_run(tmp_path, series("training/loss", [3.0]), finished=None)
    view = begun(str(home), *arguments, terminal=terminal, **environment)
    assert view.ended() == (0, "")
    assert view.text.count("step 0") == 1 and "\x1b[2K" not in view.text
    assert terminal or "\x1b" not in view.text


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda home: None, "no run directory"),
        (lambda home: home.mkdir(), "is no run directory"),
        (lambda home: home.write_text(""), "expected the directory of a run"),
    ],
)
def test_a_run_that_is_not_there_is_an_error_that_says_what_to_do(
    tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    make(tmp_path / "run")
    code, complaint = begun(str(tmp_path / "run")).ended()
    assert code == 2 and said in complaint
    assert "--wait" in complaint or "file" in complaint


def test_it_waits_for_a_run(tmp_path: Path) -> None:
    view = begun(str(tmp_path / "a" / "run"), "--wait", "--every", "0.05")
    assert view.process.stderr is not None
    assert "waiting for a run" in view.process.stderr.readline()
    write_run(tmp_path / "a" / "run", series("training/loss", [3.0]))
    assert view.ended() == (0, "")
    assert "step 0" in view.text


def test_letters_that_the_terminal_does_not_have_are_replaced(tmp_path: Path) -> None:
    losses = [3.0, 2.0, 1.0]
    home = write_run(tmp_path, series("training/loss", losses), model={"class": "Fluß"})
    view = begun(str(home), PYTHONIOENCODING="ascii", COLUMNS="60")
    assert view.ended() == (0, "")
    assert "Flu?" in view.text and "@+_" in view.text


@pytest.mark.parametrize("text", ["0", "-1", "nan", "x", "inf"])
def test_seconds_are_above_zero(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from eqtoolbox.command.cli import main

    with pytest.raises(SystemExit, match="2"):
        main(["watch", "run", "--every", text])
    assert "seconds above 0" in capsys.readouterr().err
