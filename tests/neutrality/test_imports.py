"""Laws of modules that an evaluation imports for the first time: that happens once in a process."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.symmetry import discover

MODEL = "nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))"
BATCH = "(torch.randn(8, 3), torch.randint(0, 2, (8,)))"


def _discovered(loss: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return discover(model, (torch.randn(8, 3), torch.randint(0, 2, (8,))), loss)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a module, which nobody has imported yet, writes as it is imported."""
    written = tmp_path / "settings.txt"
    (tmp_path / "written_once.py").write_text(
        f"import pathlib\npathlib.Path({str(written)!r}).write_text('1.0')\nSCALE = 2.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "written_once", raising=False)
    return written


def test_a_module_may_write_as_an_evaluation_imports_it(settings: Path) -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        scale = importlib.import_module("written_once").SCALE
        return scale * nn.functional.cross_entropy(model(batch[0]), batch[1])

    assert {s.family for s in _discovered(loss)} >= {"rescale"}
    assert settings.read_text() == "1.0"


def test_what_the_loss_itself_writes_is_refused_behind_an_import(settings: Path) -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        importlib.import_module("written_once")
        settings.write_text("2.0")
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    with pytest.raises(ValueError, match=r"the loss writes a file \(.*settings\.txt\)"):
        _discovered(loss)
    assert settings.read_text() == "1.0"


@pytest.mark.parametrize(
    ("statement", "said"), [("pass", "rescale"), ("open('out', 'w')", "writes a file")]
)
def test_a_program_that_is_itself_imported_is_watched_all_the_same(
    tmp_path: Path, statement: str, said: str
) -> None:
    """Torch imports its compiler with the first replay, unless an optimizer was made before."""
    (tmp_path / "program.py").write_text(
        "import torch\nfrom torch import nn\nfrom eqtoolbox.symmetry import discover\n"
        "def loss(model, batch):\n"
        f"    {statement}\n"
        "    return nn.functional.cross_entropy(model(batch[0]), batch[1])\n"
        f"try: print(discover({MODEL}, {BATCH}, loss))\n"
        "except ValueError as error: print(error)\n"
    )
    run = [sys.executable, "-c", "import program"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said in done.stdout
