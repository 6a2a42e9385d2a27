"""Commands that read runs: parts of a summary, comparisons, exports, explanations, completion."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eqtoolbox.command.cli import main
from tests.report.runs import series, write_run


def test_summary_of_a_part_and_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = series("conservation/closure/rescale", [0.5] * 5, floor=1e-7, verdict="violated")
    home = str(write_run(tmp_path, rows + series("curvature/sharpness", [1.0, 2.0])))
    assert main(["summary", home, "--fail-on", "alarm"]) == 0
    capsys.readouterr()
    assert main(["summary", home, "--fail-on", "warning", "--top", "1", "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert [f["level"] for f in shown["findings"]] == ["warning"]
    assert list(shown["values"]) == ["conservation/closure/rescale"] and shown["left_out"]
    assert main(["summary", home, "--only", "curvature", "--fail-on", "warning"]) == 0
    text = capsys.readouterr().out
    assert "curvature/sharpness" in text and "rescale" not in text
    assert main(["summary", home, "--only", "curvture"]) == 2
    assert "did you mean 'curvature'" in capsys.readouterr().err


def test_what_reads_a_run_answers_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(write_run(tmp_path / "run", series("training/loss", [3.0, 2.0])))
    for argv, key in {
        ("summary", home): "findings",
        ("report", home, "-o", str(tmp_path / "p.html")): "page",
        ("compare", home, home): "values",
        ("export", home, "--to", "csv"): "file",
        ("tail", home, "-n", "1"): "step",
    }.items():
        assert main([*argv, "--json"]) == 0
        assert key in json.loads(capsys.readouterr().out), argv
    assert main(["explain", "training/loss", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["pattern"] == "training/loss"


def test_tail_export_and_compare_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = str(write_run(tmp_path / "a", series("training/loss", [3.0, 2.0])))
    b = str(write_run(tmp_path / "b", series("training/loss", [9.0])))
    assert main(["tail", "-f", a, "-n", "1"]) == 0
    assert capsys.readouterr().out == "     10  training/loss  2\n"
    assert main(["export", a, "--to", "sqlite"]) == 0
    assert capsys.readouterr().out.strip() == str((tmp_path / "a" / "records.sqlite").resolve())
    assert main(["compare", a, b]) == 0
    assert "+260 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("conservation/drift/rescale", "Kunin"),
        ("drift", "‖Q now"),
        ("floor", "noise floor"),
        ("curvature", "curvature/turn"),
        ("curvature/sharpnes", "this is near"),
    ],
)
def test_explain_finds_what_is_meant(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", name]) == 0
    assert said in capsys.readouterr().out


def test_explain_of_a_record_that_there_is_begins_with_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("curvature/stability", "conservation/drift/rescale"):
        assert main(["explain", name]) == 0
        assert capsys.readouterr().out.startswith(name.rsplit("/", 1)[0])


def test_explain_without_a_name_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    from eqtoolbox.report.explained import meanings

    assert main(["explain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(meanings())


@pytest.mark.parametrize("argv", [["--top", "0"], ["--top", "x"], ["--fail-on", "good"]])
def test_numbers_and_levels_are_checked(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["summary", "run", *argv])
    assert argv[0] in capsys.readouterr().err


def test_the_shell_completes_commands_demos_and_records(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    out = tmp_path / "words"
    for typed, expected in {
        "eqtoolbox ex": {"export", "explain"},
        "eqtoolbox wa": {"watch"},
        "eqtoolbox se": {"serve"},
        "eqtoolbox explain curvature/sh": {"curvature/sharpness"},
        "eqtoolbox demo ro": {"robot"},
        "eqtoolbox export run --to s": {"sqlite"},
    }.items():
        asks = {"_ARGCOMPLETE": "1", "COMP_LINE": typed, "COMP_POINT": str(len(typed))}
        asks |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(out), "_ARGCOMPLETE_IFS": "\n"}
        subprocess.run(
            [sys.executable, "-m", "eqtoolbox"], env=os.environ | asks, check=True, timeout=120
        )
        assert expected <= {word.strip() for word in out.read_text().split("\n")}
