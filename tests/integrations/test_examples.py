"""The documentation's example of each surface runs as a stranger would run it, and measures."""

import re
from pathlib import Path

import pytest
import torch

import eqtoolbox as eq

PAGE = (Path(__file__).parents[2] / "docs/howto/frameworks.md").read_text()
BLOCKS = dict(re.findall(r"\n## ([^\n]*)\n\n```python\n(.*?)```", PAGE, re.S))


def test_there_is_an_example_of_every_surface() -> None:
    assert len(BLOCKS) == 6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BLOCKS)
def test_an_example_runs_and_measures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(BLOCKS[name], f"{name}.py", "exec"), {"__name__": "example"})
    (run_dir,) = re.findall(r'run_dir="([^"]*)"', BLOCKS[name])
    run = eq.Run(run_dir)
    assert run.info["finished"]
    cosines = run.series("monitor/closure_grad_cos")[1]
    assert cosines == pytest.approx([1.0] * len(cosines), abs=1e-5)
    assert len(cosines)
    assert not [e for e in run.events if e["kind"] == "error"]
    drift = [r for r in run.records() if r.name.startswith("conservation/drift")]
    assert drift
