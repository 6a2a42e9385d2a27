"""Whatever a path holds, every command that reads runs answers in words, and runs nothing of it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eqtoolbox.command.cli import main
from eqtoolbox.record.record import Record
from eqtoolbox.report import Run
from eqtoolbox.report.drawing import thinned
from tests.report.runs import missing, series, write_run

pytest.importorskip("jinja2")

EVIL = "<img src=x onerror=alert(1)>\x1b[2J"
ESCAPES = set("\x1b\x07\x9b\u202e")
LOSS = series("training/loss", [2.0 - 0.1 * i for i in range(9)])
LINE = '{"step": 3, "name": "training/loss", "value": 1.5, "unit": "1"}\n'


def texts(home: Path, records: str | bytes, **files: str) -> Path:
    home.mkdir()
    (home / "records.jsonl").write_bytes(
        records if isinstance(records, bytes) else records.encode()
    )
    for name, text in files.items():
        (home / f"{name}.json").write_text(text)
    return home


def hostile(home: Path) -> Path:
    """Names, notes and facts that would like to be code, a pickle among the vectors."""
    rows = [*LOSS, *missing("x/y", [0], "failed", EVIL)]
    write_run(home, rows, model={"class": EVIL}, probes={EVIL: {"import": "os"}}, eqtoolbox=EVIL)
    (home / "arrays.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.")
    return home


READ: dict[str, tuple[Callable[[Path], Path], str]] = {  # what summary then says
    "torn": (
        lambda home: write_run(home, LOSS, tail='{"step": 90, "na'),
        "1 line of the log could not be read and was left out (records.jsonl line 10: no whole "
        "JSON object, torn by a kill or being written).",
    ),
    "foreign": (
        lambda home: texts(home, '{"epoch": 1, "loss": 2.0}\n' * 30),
        "There is no record: 30 lines could not be read (first: records.jsonl line 1: name must "
        "be 1 to 200 letters of [A-Za-z0-9_./-], got None).",
    ),
    "binary": (lambda home: texts(home, bytes(range(256)) * 20), "There is no record:"),
    "of a later format": (
        lambda home: write_run(home, LOSS, format=99, eqtoolbox="9.0"),
        "The run is of format 99, of eqtoolbox 9.0; this one knows formats up to 2",
    ),
    "of format 1": (lambda home: write_run(home, LOSS, format=1), "the run learned"),
    "without facts": (
        lambda home: texts(home, LINE, run="no json"),
        "1 line of the log could not be read and was left out (run.json: no whole JSON object",
    ),
    "of one record": (lambda home: texts(home, LINE), "training/loss   1.5"),
    "of no record": (lambda home: texts(home, "", run='{"format": 2}'), "no record"),
    "hostile": (hostile, r"<img src=x onerror=alert(1)>\x1b[2J to step 80"),
}
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda home: (home.parent / "homey").mkdir(), "did you mean 'homey'?"),
    "a file": (lambda home: home.write_text("x"), "expected the directory of a run, got the file"),
    "empty": (lambda home: home.mkdir(), "expected run.json or records.jsonl in it"),
    "of runs": (
        lambda home: write_run(home / "first", LOSS),
        "expected run.json or records.jsonl in it; runs are in first",
    ),
    "a link": (
        lambda home: (home.mkdir(), (home / "records.jsonl").symlink_to("/dev/zero")),
        "records.jsonl is a link, expected a plain file",
    ),
}


def commands(home: Path, other: Path, out: Path) -> list[list[str]]:
    one, two = str(home), str(other)
    return [
        ["summary", one], ["summary", one, "--json"], ["report", one, "-o", str(out / "1.html")],
        ["report", two, one, "-o", str(out / "2.html")], ["compare", two, one],
        ["compare", one, two, "--json"], ["tail", one], ["tail", one, "--json"],
        ["export", one, "--to", "csv", "-o", str(out / "r.csv")],
        ["export", one, "--to", "sqlite", "-o", str(out / "r.sqlite")],
    ]  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_what_can_be_read_is_read_by_every_command(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, said = READ[kind]
    home, other = make(tmp_path / "home"), write_run(tmp_path / "other", LOSS)
    for command in commands(home, other, tmp_path):
        assert main(command) == 0, command
        shown = capsys.readouterr()
        assert not set(shown.out + shown.err) & ESCAPES, command
        if command == ["summary", str(home)]:
            assert " ".join(said.split()) in " ".join(shown.out.split())
        if "--json" in command and command[0] != "tail":
            json.loads(shown.out)
    for page in ("1.html", "2.html"):
        text = (tmp_path / page).read_text()
        assert "<img" not in text and not set(text) & ESCAPES


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_in_the_same_words_by_every_command(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, said = REFUSED[kind]
    home, other = tmp_path / "home", write_run(tmp_path / "other", LOSS)
    make(home)
    before = sorted(tmp_path.rglob("*"))
    for command in commands(home, other, tmp_path):
        assert main(command) == 2, command
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1
        assert shown.err.startswith("eqtoolbox: ") and said in shown.err, command
    assert sorted(tmp_path.rglob("*")) == before


GUARD = """
import sys
from eqtoolbox.command.cli import main
def hear(event, arguments):
    if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect",
                 "pickle.find_class"):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(hear)
for command in eval(sys.argv[1]):
    assert main(command) == 0, command
if len(sys.argv) > 2:
    import pickle
    pickle.loads(bytes.fromhex(sys.argv[2]))
"""


def test_nothing_of_a_hostile_run_is_executed(tmp_path: Path) -> None:
    home, other = hostile(tmp_path / "home"), write_run(tmp_path / "other", LOSS)
    command = [sys.executable, "-c", GUARD, repr(commands(home, other, tmp_path))]
    told = {"capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(command, **told)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    pickled = b"cos\nsystem\n(S'true'\ntR.".hex()
    caught = subprocess.run([*command, pickled], **told)  # type: ignore[call-overload]
    assert caught.returncode == 1 and "pickle.find_class" in caught.stderr


def test_pages_among_the_runs_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        write_run(tmp_path / name, LOSS)
    for command in ("report", "report", "compare"):
        assert main([command, *map(str, sorted(tmp_path.iterdir()))]) == 0  # as runs/*
    assert "a: ConvNet" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "compared.html")]) == 2
    assert "got the file" in capsys.readouterr().err


def test_an_empty_tail_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = texts(tmp_path / "home", '{"epoch": 1}\n')
    assert main(["tail", str(home), "--json"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"eqtoolbox: no record in {str(home)!r}\n")


@pytest.mark.parametrize("seed", range(8))
def test_a_thinned_line_has_the_envelope_of_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, limit = int(rng.integers(1, 40_000)), int(rng.integers(2, 2000))
    values = rng.standard_t(1.5, size=count)
    kept = thinned(values, limit)
    assert (np.diff(kept) > 0).all() and {0, count - 1} <= set(kept.tolist())
    assert len(kept) <= max(limit + 2, min(count, limit))
    parts = np.array_split(np.arange(count), max(1, limit // 2)) if count > limit else []
    for part in parts:
        inside = kept[(kept >= part[0]) & (kept <= part[-1])]
        assert values[inside].min() == values[part].min()
        assert values[inside].max() == values[part].max()


def test_a_run_of_mixed_formats_is_one_run(tmp_path: Path) -> None:
    """Rows of a run that a later version went on with."""
    rows = [*LOSS, Record(step=90, name="a/b", value=1.0, note="alarm: lost")]
    assert Run(write_run(tmp_path / "run", rows, format=1, segments=2)).names() == [
        "a/b",
        "training/loss",
    ]
