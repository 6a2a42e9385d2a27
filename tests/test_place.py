"""Where a run is kept when its cell is run again."""

import builtins
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import eqtoolbox as eq

LOSS = nn.MSELoss()
PROBES = {"curvature": {"k": 1}}


def attached(home: Path | None, model: nn.Module | None = None, **options: Any) -> eq.Monitor:
    """What a cell of a notebook holds."""
    model = model or nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return eq.attach(model, optimizer, criterion=LOSS, run_dir=home, probes=PROBES, **options)


def trained(monitor: eq.Monitor, steps: int = 2) -> None:
    for _ in range(steps):
        LOSS(monitor.model(torch.ones(4, 2)), torch.zeros(4, 1)).backward()
        monitor.optimizer.step()


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A shell, of which a cell is run again where its `execution_count` is another one."""
    shell = SimpleNamespace(execution_count=1)
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)
    return shell


def test_runs_are_counted_up(tmp_path: Path) -> None:
    home = tmp_path / "nb"
    for name in ("nb", "nb-2", "nb-3"):
        monitor = attached(home, exist="number")
        monitor.close()
        assert (tmp_path / name / "run.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nb", "nb-2", "nb-3"]


def test_runs_are_counted_up_from_here_past_files_and_what_is_left_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nb").mkdir()
    (tmp_path / "nb" / "records.jsonl").write_text("")
    (tmp_path / "nb-2").write_text("mine")
    monkeypatch.chdir(tmp_path / "nb")
    monitor = attached(Path("."), exist="number")
    monitor.close()
    assert (tmp_path / "nb-3" / "run.json").exists()
    assert (tmp_path / "nb-2").read_text() == "mine"


def test_of_two_that_count_up_at_the_same_time_each_gets_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys.modules["eqtoolbox.attach.place"], "_taken", lambda path: False
    )  # seen by both
    first, second = (attached(tmp_path / "nb", exist="number") for _ in range(2))
    assert {first.run_dir, second.run_dir} == {tmp_path / "nb", tmp_path / "nb-2"}
    first.close()
    second.close()


def test_what_is_left_of_a_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text('{"step": 4, "name": "training/loss", "value": 1}\n')
    (tmp_path / "run.json").symlink_to(tmp_path / "gone")
    monitor = attached(tmp_path, exist="replace")
    assert monitor.step == 0
    monitor.close()
    assert not (tmp_path / "run.json").is_symlink() and not (tmp_path / "gone").exists()


def test_a_run_is_replaced_and_nothing_else_of_its_directory(tmp_path: Path) -> None:
    first = attached(tmp_path / "nb")
    trained(first)
    first.close()
    (tmp_path / "nb" / "notes.txt").write_text("mine")
    (tmp_path / "nb" / "report.html").write_text("of the run that was")
    monitor = attached(tmp_path / "nb", exist="replace")
    monitor.close()
    run = eq.Run(tmp_path / "nb")
    assert run.names() == [] and run.info["segments"] == 1
    assert (tmp_path / "nb" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "nb" / "report.html").exists()


def test_a_run_that_is_being_written_is_not_replaced(tmp_path: Path) -> None:
    first = attached(tmp_path / "nb")
    with pytest.raises(FileExistsError, match="being written by another monitor"):
        attached(tmp_path / "nb", exist="replace")
    assert (tmp_path / "nb" / "run.json").exists()
    first.close()


def test_links_of_a_run_are_removed_and_not_followed(tmp_path: Path) -> None:
    attached(tmp_path / "nb").close()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "nb" / "report.html").symlink_to(tmp_path / "mine")
    attached(tmp_path / "nb", exist="replace").close()
    assert (tmp_path / "mine").read_text() == "mine"


def test_with_resume_a_run_goes_on_whatever_else_is_asked(tmp_path: Path) -> None:
    attached(tmp_path / "nb").close()
    attached(tmp_path / "nb", exist="replace", resume=True).close()
    assert eq.Run(tmp_path / "nb").info["segments"] == 2


def test_what_to_do_with_a_run_is_one_of_three() -> None:
    with pytest.raises(
        ValueError, match=r"exist must be one of .*'number', 'replace'.*got 'overwrite'"
    ):
        attached(None, exist="overwrite")


@pytest.mark.parametrize("exist", ["replace", "number"])
def test_a_cell_that_is_run_again_closes_the_monitor_of_the_last_time(
    tmp_path: Path, notebook: Any, caplog: pytest.LogCaptureFixture, exist: Any
) -> None:
    for again in range(3):
        notebook.execution_count = again
        monitor = attached(tmp_path / "nb", exist=exist)
        forgotten = [r.getMessage() for r in caplog.records if "forgotten" in r.getMessage()]
        assert len(forgotten) == again
        kept = monitor  # a name that another cell has
        trained(kept)
    monitor.close()
    assert ("test_place.py" in forgotten[0]) and not monitor.attached
    assert monitor.run_dir is not None
    assert monitor.run_dir.name == ("nb" if exist == "replace" else "nb-3")
    assert eq.Run(monitor.run_dir).names()


@pytest.mark.parametrize("home", [None, "nb"])
def test_all_monitors_of_one_execution_live(
    tmp_path: Path, notebook: Any, caplog: pytest.LogCaptureFixture, home: str | None
) -> None:
    place = home and tmp_path / home
    monitors = [attached(place, exist="number") for _ in range(3)]
    assert all(m.attached for m in monitors) and not caplog.records
    for monitor in monitors:
        monitor.close()


CELLS = r"""
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
def cell(text):
    shell.run_cell(text, store_history=True).raise_error()
cell("from tests.test_place import attached\nmake = lambda: attached(None)")
cell("a, b = make(), make()")
cell("c = make()")
cell("assert a.attached and b.attached and c.attached")
cell("for m in (a, b, c): m.close()")
for _ in range(2):
    cell("x = make()\nkept = globals().get('kept') or x")
cell("assert x is not kept and x.attached and not kept.attached")
"""


def test_cells_of_ipython_that_are_run_again_are_told_from_others() -> None:
    pytest.importorskip("IPython")
    done = subprocess.run([sys.executable, "-c", CELLS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_cell_that_attaches_to_the_same_optimizer_takes_over(
    tmp_path: Path, notebook: None, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = eq.attach(model, optimizer, criterion=nn.MSELoss())
    second = eq.attach(model, optimizer, criterion=nn.MSELoss())
    assert not first.attached and second.attached
    second.close()
    third = eq.attach(model, optimizer, criterion=nn.MSELoss())
    assert len(caplog.records) == 1, "one that was closed is not forgotten"
    third.close()


def test_a_program_that_attaches_twice_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "eqtoolbox")
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        eq.attach(model, optimizer, criterion=nn.MSELoss()),
        pytest.raises(ValueError, match="has a monitor already"),
    ):
        eq.attach(model, optimizer, criterion=nn.MSELoss())


def test_the_run_of_a_monitor_is_read_while_it_goes_on(tmp_path: Path) -> None:
    monitor = attached(tmp_path / "nb", schedule=1, budget=None)
    trained(monitor)
    assert isinstance(monitor.run, eq.Run)
    assert monitor.run.last_step == 1
    trained(monitor, steps=1)
    assert monitor.run.last_step == 2
    monitor.close()
    assert monitor.run.findings()
    with pytest.raises(ValueError, match="no run to read"):
        _ = attached(None).run


UNCLOSED = """
import sys
import torch
import eqtoolbox as eq

torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
monitor = eq.attach(model, optimizer, probes="light", run_dir=sys.argv[1], schedule=10)
loss_fn = monitor.loss(lambda model, x: model(x).square().mean())
for step in range(18):
    x = torch.randn(8, 4) * (float("inf") if step == 16 else 1.0)
    optimizer.zero_grad()
    loss_fn(model, x).backward()
    optimizer.step()
    if step == 17 and sys.argv[2] == "dies":
        raise FloatingPointError("the loss is NaN")
"""


@pytest.mark.parametrize("how", ["dies", "ends"])
def test_a_program_that_closes_nothing_loses_no_losses(tmp_path: Path, how: str) -> None:
    home = tmp_path / "run"
    ran = subprocess.run(
        [sys.executable, "-c", UNCLOSED, str(home), how], capture_output=True, text=True
    )
    assert ("FloatingPointError" in ran.stderr) == (how == "dies")
    assert "eqtoolbox: 18 steps" in ran.stderr
    run = eq.Run(home)
    assert run.info["finished"] and run.last_step == 17
    assert any("since step 16" in f.text for f in run.findings() if f.level == "alarm")
    said = [event for event in run.events if "the loss is NaN" in str(event)]
    assert bool(said) == (how == "dies")
