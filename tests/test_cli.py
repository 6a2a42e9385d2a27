"""The command line does what its help says, and says what is wrong."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from eqtoolbox.command.cli import main
from eqtoolbox.command.demo.catalogue import DEMOS


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    run = tmp_path_factory.mktemp("demo") / "run"
    assert main(["demo", "--run-dir", str(run), "--steps", "25"]) == 0
    return run


def test_the_demo_ends_with_findings_and_the_path_of_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["demo", "--run-dir", str(run), "--steps", "3"]) == 0
    out = capsys.readouterr().out.rstrip()
    assert "What the monitor found" in out
    assert out.endswith(str(run / "report.html"))
    assert "https://" not in (run / "report.html").read_text().replace("https://plotly", "")[:2000]


def test_the_demo_gives_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--run-dir", str(tmp_path / "run"), "--steps", "2", "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["runs"]["plain"]
    assert Path(run["report"]).exists()
    assert run["findings"]


def test_a_demo_of_several_networks_compares_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "robot", "--run-dir", str(tmp_path), "--steps", "3"]) == 0
    out = capsys.readouterr().out
    assert "The robot seen in a mirror obeys its own equations: relative error 0 " in out
    assert "kept to rounding by averaged and tied; broken by" in out
    page = tmp_path / "compared.html"
    assert f"All on one page:  {page.resolve()}" in out
    assert "plain, augmented, averaged and tied" in page.read_text()
    assert {p.parent.name for p in tmp_path.glob("*/report.html")} == {
        "plain",
        "augmented",
        "averaged",
        "tied",
    }


def test_the_demos_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(DEMOS)


def test_summary_and_report_read_the_run(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", str(demo)]) == 0
    assert "curvature/sharpness" in capsys.readouterr().out
    assert main(["summary", str(demo), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    page = demo.parent / "page.html"
    assert main(["report", str(demo), "-o", str(page)]) == 0
    assert capsys.readouterr().out.strip() == str(page.resolve())
    assert page.stat().st_size > 100_000


def test_all_four_questions_are_answered_on_the_digits(demo: Path) -> None:
    from eqtoolbox import Run

    run = Run(demo)
    families = {n.split("/")[2] for n in run.names() if n.startswith("noether/second_order/")}
    symmetries = {"gain_rescale", "rescale", "scale", "translation"}
    assert families == symmetries | {"head_rotation", "head_scale", "head_shift", "homogeneity"}
    assert run.series("curvature/sharpness")[1].min() > 0
    assert run.records("equivariance/relative_error/cyclic4")[-1].verdict == "violated"
    assert run.records("noether/second_order/rescale")[-1].verdict == "holds"
    assert abs(run.series("conservation/share_unmeasured/rescale")[1]).max() < 1e-6
    assert run.series("monitor/closure_grad_cos")[1][0] > 0.9999


def test_check_prints_the_resolved_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "standard", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["curvature"]["k"] == 3
    assert main(["check", "standard"]) == 0
    assert "[curvature]" in capsys.readouterr().out


def small() -> object:
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, (torch.randn(16, 4), torch.arange(16) % 3)


def bare() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))


def strange() -> torch.nn.Module:
    return torch.nn.Bilinear(3, 4, 5)


def nothing() -> None:
    return None


def test_symmetries_prints_the_table_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["symmetries", "tests.test_cli:small"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("family")
    assert "rescale" in out and "permutation" in out
    assert main(["symmetries", "tests.test_cli:small", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"rescale": 8, "translation": 9}.items() <= {
        r["family"]: r["dimension"] for r in rows
    }.items()


def test_symmetries_of_a_config_entry_and_of_a_model_without_a_batch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["symmetries", "configs/experiments/transformer.toml"]) == 0
    out = capsys.readouterr().out
    assert "rope" in out and "gated_rescale" in out
    assert main(["symmetries", "tests.test_cli:bare"]) == 0
    out = capsys.readouterr().out
    assert "rescale" in out and "note: no batch given" in out


def test_symmetries_of_a_model_in_a_file_that_imports_its_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wide.py").write_text("WIDTH = 5\n")
    Path("mine.py").write_text(
        "from torch import nn\nfrom wide import WIDTH\n"
        "build = nn.Sequential(nn.Linear(3, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))\n"
    )
    before = list(sys.path)
    assert main(["symmetries", "mine.py:build", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert next(r["dimension"] for r in rows if r["family"] == "rescale") == 5
    assert sys.path == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["check", "standrd"], "did you mean 'standard'"),
        (["summary", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["tail", "nowhere"], "nowhere"),
        (["export", "nowhere", "--to", "csv"], "nowhere"),
        (["compare", "nowhere", "nowhere"], "nowhere"),
        (["compare", "nowhere"], "two runs or more"),
        (["explain", "qqqq"], "no record is named 'qqqq'"),
        (["demo", "--steps", "0"], "--steps must be >= 1"),
        (["demo", "robbot"], "did you mean 'robot'"),
        (["symmetries", "nothing"], "expected 'package.module:NAME' or 'file.py:NAME'"),
        (["symmetries", "nowhere:made"], "No module named 'nowhere'"),
        (["symmetries", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (["symmetries", "tests.test_cli:strange"], "return (model, batch)"),
        (["symmetries", "tests.test_cli:nothing"], "got NoneType"),
    ],
)
def test_bad_input_exits_with_2_and_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_used_run_directory_is_refused(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--run-dir", str(demo), "--steps", "1"]) == 2
    assert "holds a finished run" in capsys.readouterr().err


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: eqtoolbox") and "explain" in shown


def test_every_record_of_a_demo_is_explained(demo: Path) -> None:
    from eqtoolbox import Run
    from eqtoolbox.report.explained import explained

    assert [name for name in Run(demo).names() if explained(name) is None] == []


USERS = """
import sys
import torch
from torch import nn

class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no")

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
    def forward(self, x):
        return 1 / 0

def fails(): raise RuntimeError("user trouble")
def recurses(): return recurses()
def leaves(): sys.exit("bye")
def silent(): raise Silent
def asserts(): assert False
def exhausts(): raise MemoryError
def interrupts(): raise GeneratorExit
def letters(): raise ValueError("\\ud800 \\x1b[2J")
def overflows(): return 10.0 ** 400
def broken(): return Broken(), torch.randn(8, 3)
"""


@pytest.mark.parametrize("command", ["audit", "symmetries"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "RuntimeError: user trouble"),
        ("recurses", "RecursionError: maximum recursion depth exceeded"),
        ("leaves", "SystemExit: bye"),
        ("silent", "Silent: it could not say why"),
        ("asserts", "AssertionError"),
        ("exhausts", "MemoryError"),
        ("interrupts", "GeneratorExit"),
        ("letters", r"\ud800 \x1b[2J"),
        ("overflows", "OverflowError"),
        ("broken", "division by zero"),
    ],
)
def test_an_error_of_the_users_code_is_one_line_that_names_theirs(
    command: str,
    name: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(USERS)
    (tmp_path / "a.toml").write_text(f'[audit]\nsource = "mine.py:{name}"\n')
    assert main([command, "a.toml" if command == "audit" else f"mine.py:{name}"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    line = next(i for i, text in enumerate(USERS.split("\n"), 1) if f"def {name}(" in text)
    if name == "broken":
        line = USERS.split("\n").index("        return 1 / 0") + 1
    assert f"mine.py:{line})" in err


def test_a_file_of_the_users_that_is_no_python_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def (")
    assert main(["symmetries", "mine.py:x"]) == 2
    assert "(mine.py, line 1)" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["summary", ""], ["report", ""], ["demo", "--run-dir", ""]])
def test_an_empty_path_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert "expected a path, got an empty text" in capsys.readouterr().err


def test_a_terminal_of_few_letters_gets_what_it_can_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.json").write_text('{"model": {"class": "Nèt\\ud800"}, "finished": 1}')
    (tmp_path / "records.jsonl").write_text("")
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(["summary", str(tmp_path)]) == 0
    shown.flush()
    assert shown.buffer.getvalue().startswith(b"N?t?")  # type: ignore[attr-defined]


CODE = """
from pathlib import Path
Path(__file__).with_suffix(".ran").touch()
from eqtoolbox.symmetry import Cyclic, Equivariance, actions
CLAIM = Equivariance(Cyclic(4), actions.quarter_turn, actions.trivial, name="mine")
def build():
    raise RuntimeError("check never builds a model")
"""
TABLES = {
    "probes": '[probes.equivariance]\nsymmetries = ["flip", "mine.py:CLAIM"]\n',
    "module": '[probes.equivariance]\nsymmetries = ["mine_as_module:CLAIM"]\n',
    "audit": '[audit]\nsource = "mine.py:build"\nsymmetries = ["mine.py:CLAIM"]\n',
    "symmetries": '[symmetries]\nsource = "mine.py:build"\n',
    "all": '[probes.curvature]\n[audit]\nsource = "mine.py:build"\n',
}


@pytest.mark.parametrize("table", TABLES)
def test_check_without_import_runs_no_code_and_with_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str
) -> None:
    for name in ("mine", "mine_as_module"):
        (tmp_path / f"{name}.py").write_text(CODE)
    config = tmp_path / "a.toml"
    config.write_text(TABLES[table])
    ran = lambda: list(tmp_path.glob("*.ran"))
    assert main(["check", str(config), "--no-import"]) == 0
    assert "(not imported)" in capsys.readouterr().out
    assert not ran()
    assert main(["check", str(config), "--no-import", "--json"]) == 0
    assert "(not imported)" in json.dumps(json.loads(capsys.readouterr().out))
    assert not ran()
    assert main(["check", str(config)]) == 0
    assert "(not imported)" not in capsys.readouterr().out
    assert ran(), "the reference was looked up"
    sys.modules.pop("mine_as_module", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[probes.equivariance]\nsymmetries = [":x"]', "expected 'package.module:NAME' .* got ':x"),
        ('[probes.equivariance]\nsymmetries = ["..:x"]', r"equivariance.symmetries: .* got '\.\.:"),
        ('[probes.equivariance]\nsymmetries = ["a.py:"]', "got 'a.py:'"),
        ('[probes.equivariance]\nsamples = 1\nsymmetries = ["a.py:B"]', "samples must be >= 2, go"),
        ('[audit]\nsource = "a b:c"', "audit.source: expected 'package.module:NAME'"),
        ('[audit]\nsource = "a:c"\nsamples = true', "audit.samples must be an integer >= 2, got T"),
        ('[audit]\nsource = "a:c"\nsample = 3', "no more than source, samples, symmetries, got sa"),
        ('[symmetries]\nsource = 5', r"expected a table \[symmetries\] with source"),
        ("engine = 5\n[probes.curvature]", r"expected a table \[engine\], got engine = 5"),
        ("probes = 5", r"expected tables \[probes.NAME\]"),
        ("[probes.curvature]\nk = 999999999999999999", "k >= 1, at most 10000"),
        ("[probes.curvature]\ntol = nan", "tol must be a number, got nan"),
        ("[probes.curvature]\nschedule = {every = 2.5}", r"n must be an integer, got 2\.5"),
        ("[probes.curvature]\nschedule = {at = 5}", "steps must be a list of integers, got 5"),
        ("[probes.curvature]\nschedule = {at = ['a']}", r"steps\[0\] must be an integer, got 'a'"),
        ("[probes.curvature]\nschedule = {until = 5}", "schedule must be an int"),
        ("a = " + "[" * 3000 + "]" * 3000, "not valid TOML: brackets nested too deep"),
    ],
)  # fmt: skip
def test_check_names_what_is_wrong_with_the_file_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    config = tmp_path / "a.toml"
    config.write_text(text)
    assert main(["check", str(config), "--no-import"]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert str(config) in said


def test_a_file_that_is_no_text_is_named_by_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "b.toml"
    config.write_bytes(b"\xff\xfe\x00")
    for command in ("check", "audit", "symmetries"):
        assert main([command, str(config)]) == 2
        assert f"{config}: not valid TOML" in capsys.readouterr().err


def test_code_that_cannot_be_imported_is_named_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text("def build(:\n")
    (tmp_path / "lacking.py").write_text("import nonexistent_package\n")
    config = tmp_path / "a.toml"
    for name, why in (("broken", "invalid syntax"), ("lacking", "No module named 'nonexistent")):
        config.write_text(f'[audit]\nsource = "{name}.py:build"\n')
        assert main(["audit", str(config)]) == 2
        said = capsys.readouterr().err
        assert f"audit.source: {name}.py cannot be imported" in said and why in said
