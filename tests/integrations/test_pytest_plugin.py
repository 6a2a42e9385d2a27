"""The plugin of pytest: its fixtures pass and fail as they should, and nobody else notices it."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.integrations.pytest_plugin import conserved
from eqtoolbox.probes import Conservation, Curvature
from tests.conftest import blobs, mlp

ROOT = Path(__file__).parents[2]
PLUGIN = "eqtoolbox.integrations.pytest_plugin"


def suite(folder: Path, code: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output of pytest on a file of its own, in a process of its own."""
    (folder / "test_theirs.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", PLUGIN, "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def test_fixtures_pass_what_holds_and_say_why_the_rest_fails(tmp_path: Path) -> None:
    code, said = suite(
        tmp_path,
        """
import pytest, torch
from torch import nn
from eqtoolbox.symmetry import Cyclic, Equivariance, actions

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TURNS = Equivariance(Cyclic(4), actions.quarter_turn, actions.trivial)

@pytest.mark.parametrize("symmetry", [TURNS, Cyclic(4)])
def test_good(assert_equivariant, symmetry):
    before = torch.get_rng_state()
    found = assert_equivariant(nn.AdaptiveAvgPool2d(1), X, symmetry)
    assert found.verdict == "holds"
    assert torch.equal(before, torch.get_rng_state())

def test_tolerated(assert_equivariant):
    assert_equivariant(lambda x: x[:, 0, 0], X, TURNS, tolerance=2.0)

def test_bad(assert_equivariant):
    torch.manual_seed(0)
    net = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    assert_equivariant(net, X, TURNS)

def test_misused(assert_equivariant):
    assert_equivariant(nn.Flatten(), TURNS, X)
""",
    )
    assert code == pytest.ExitCode.TESTS_FAILED and "2 failed, 3 passed" in said, said
    assert re.search(
        r"AssertionError: cyclic4 violated: relative error [\d.]+, floor \S+e-0\d", said
    )
    assert "first broken at 1: Flatten gives every place its own weights" in said
    assert "To do: mend what is named, or average the model over the group" in said
    assert "symmetry must be an Equivariance or a Group" in said
    assert "testing.py" not in said.split("test_misused")[0], "frames of the toolbox are hidden"


def run(path: Path, lr: float = 0.1, steps: int = 4, charges: bool = True) -> eq.Run:
    x, y = blobs()
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    criterion = nn.CrossEntropyLoss()
    chosen = [Conservation() if charges else Curvature(k=1)]
    with eq.attach(
        model, optimizer, criterion=criterion, probes=chosen, schedule=1, budget=None, run_dir=path
    ):
        for _ in range(steps):
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
    return eq.Run(path)


def test_conserved_charges_are_told_from_drifting_ones(tmp_path: Path) -> None:
    done = run(tmp_path / "run")
    last = float(done.series("conservation/drift/rescale")[1][-1])
    assert conserved(done, tolerance=2 * last, family="rescale") == {"rescale": last}
    with pytest.raises(AssertionError, match=r"rescale drifted \S+ %: 100 % finite step"):
        conserved(tmp_path / "run", tolerance=last / 2)
    with pytest.raises(AssertionError, match=r"no drift of scale was measured .* but of .*rescale"):
        conserved(done, tolerance=1.0, family="scale")


def test_what_was_not_measured_or_broke_down_does_not_pass(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no drift of any charge"):
        conserved(run(tmp_path / "without", charges=False), tolerance=1.0)
    path = tmp_path / "broken"
    run(path)
    row = {"step": 4, "name": "conservation/drift/rescale", "value": "NaN", "status": "non_finite"}
    with (path / "records.jsonl").open("a") as rows:
        rows.write(json.dumps(row) + "\n")
    with pytest.raises(AssertionError, match="rescale drifted NaN %"):
        conserved(path, tolerance=1e9, family="rescale")


def test_who_does_not_ask_pays_nothing(tmp_path: Path) -> None:
    """Neither torch nor numpy, few files of the toolbox, no option, marker, hook or warning."""
    code, said = suite(
        tmp_path,
        f"""
import sys

def test_theirs(pytestconfig):
    plugin = pytestconfig.pluginmanager.get_plugin({PLUGIN!r})
    hooks = pytestconfig.pluginmanager.get_hookcallers(plugin)
    assert not hooks and not [n for n in vars(plugin) if n.startswith("pytest_")]
    heavy = {{"torch", "numpy", "scipy", "tqdm"}} & sys.modules.keys()
    assert not heavy, heavy
    ours = [n for n in sys.modules if n.split(".")[0] == "eqtoolbox"]
    assert len(ours) < 10, ours
""",
        "-W", "error", "--strict-markers", "--strict-config",
    )  # fmt: skip
    assert code == 0, said


def test_the_page_says_what_is_so(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/howto/testing.md").read_text(), re.S)
    code, said = suite(tmp_path, "\n".join(blocks[:2]))
    assert code == 0 and "2 passed" in said, said


def test_pytest_may_be_started_where_the_package_was_imported_before() -> None:
    """Of an installed package with a plugin all files are to be rewritten, which warns if late."""
    from _pytest.assertion.rewrite import AssertionRewriter

    assert AssertionRewriter.is_rewrite_disabled(eq.__doc__)


def test_it_is_there_once_however_it_is_named() -> None:
    """Installed and named by -p it is one plugin only if both names are the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {PLUGIN: PLUGIN}
