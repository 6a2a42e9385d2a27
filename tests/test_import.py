"""Importing eqtoolbox is cheap: torch and numpy where something is measured, else nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eqtoolbox as eq
import eqtoolbox.report

HEAVY = ["scipy", "pandas", "plotly", "jinja2", "sklearn", "tqdm", "lightning", "transformers"]


def done(code: str) -> str:
    """What the code prints in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_import_loads_only_torch_and_numpy() -> None:
    code = (
        "import sys, torch, numpy; before = set(sys.modules); import eqtoolbox; eqtoolbox.attach;"
        f"new = {{m.split('.')[0] for m in set(sys.modules) - before}};"
        "third = {m for m in new if m not in sys.stdlib_module_names} - {'eqtoolbox'};"
        f"assert not third & set({HEAVY!r}), third; print(sorted(third))"
    )
    said = done(code)
    allowed = {"torch", "numpy", "functorch", "typing_extensions"}
    allowed |= {"_cython_3_2_4", "cython_runtime"}  # of numpy.random
    assert set(eval(said)) <= allowed, said


def test_a_torch_without_distributed_is_enough() -> None:
    code = (
        "import sys, types, torch, torch._dynamo, torch.distributed;"
        "bare = types.ModuleType('torch.distributed'); bare.is_available = lambda: False;"
        "bare.__path__, bare.ProcessGroup = torch.distributed.__path__, type('Group', (), {});"
        "sys.modules['torch.distributed'] = torch.distributed = bare;"
        "import eqtoolbox as eq; model = torch.nn.Linear(4, 2); loss = torch.nn.CrossEntropyLoss();"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1);"
        "monitor = eq.attach(model, optimizer, criterion=loss, probes='light');"
        "loss(model(torch.ones(3, 4)), torch.zeros(3, dtype=torch.long)).backward();"
        "optimizer.step(); print(monitor.latest('training/loss') is not None); monitor.close()"
    )
    assert done(code).strip() == "True"


@pytest.mark.parametrize("enabled", [True, False])
def test_import_leaves_the_garbage_collector_as_it_was(enabled: bool) -> None:
    code = (
        f"import gc, torch; (gc.enable if {enabled} else gc.disable)();"
        "before = gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), gc.get_debug();"
        "import eqtoolbox; eqtoolbox.attach;"
        "after = gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), gc.get_debug();"
        f"assert before == after and after[0] is {enabled}, (before, after)"
    )
    done(code)


@pytest.mark.parametrize(
    "reads",
    [
        "import eqtoolbox",
        "from eqtoolbox import Run, every; Run(path).findings",
        "from eqtoolbox.report import Run, summary_text; summary_text(Run(path))",
        "from eqtoolbox.command.cli import main; assert main(['summary', path]) == 0",
        "from eqtoolbox.command.cli import main; assert main(['report', path]) == 0",
        "from eqtoolbox.command.cli import main; assert main(['compare', path, path]) == 0",
        "from eqtoolbox.command.cli import main; assert main(['tail', '-f', path]) == 0",
        "from eqtoolbox.command.cli import main; assert main(['export', path, '--to', 'csv']) == 0",
        "from eqtoolbox.command.cli import main; assert main(['watch', path]) == 0",
        "from eqtoolbox.report.live.served import served; served(path).test_client().get('/')",
        "from eqtoolbox.command.cli import main; assert main(['explain', 'drift']) == 0",
        "from eqtoolbox.command.cli import main; assert main([]) == 0",
    ],
)
def test_who_only_reads_does_not_wait_for_torch(reads: str, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(model, optimizer, run_dir=tmp_path / "run") as monitor:
        loss = monitor.loss(lambda m, x: m(x).square().mean())
        for _ in range(3):
            optimizer.zero_grad()
            loss(model, torch.ones(4, 2)).backward()
            optimizer.step()
    done(
        f"import sys; path = {str(tmp_path / 'run')!r}; {reads}; assert 'torch' not in sys.modules"
    )


def test_names_come_when_they_are_asked_for() -> None:
    done(
        "import eqtoolbox as eq; import eqtoolbox.attach.config;"
        "assert callable(eq.attach) and eq.probes.Curvature and set(eq.__all__) <= set(dir(eq));"
        "from eqtoolbox.attach import attach; assert attach is eq.attach;"
        "from eqtoolbox import *; assert attach is eq.attach and Run is eq.Run;"
        "assert not hasattr(eq, 'nothing') and not hasattr(eq, '__wrapped__')"
    )


def test_every_public_name_is_where_it_is_said_to_be() -> None:
    packages = [eq, eqtoolbox.report]
    assert [n for p in packages for n in p.__all__ if not hasattr(p, n)] == []
