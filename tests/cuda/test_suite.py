"""The benchmark for GPUs, `benchmarks/gpu.py`: it starts on a CPU, and keeps what it found."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("gpu", BENCHMARKS / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_smallest_stage_runs_on_a_cpu(gpu: ModuleType, tmp_path: Path) -> None:
    assert gpu.main(["exact", "--device", "cpu", "--tiny", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "gpu_cpu.json").read_text())
    assert written["results"]["exact"]["off_dense_float64"] < 1e-4
    assert written["environment"]["torch"]


def test_a_stage_that_is_late_or_fails_keeps_what_it_found(gpu: ModuleType) -> None:
    found = f"import time; print('{gpu.MARK}{{\"a\": 1}}', flush=True); "
    late = gpu.run([sys.executable, "-c", found + "time.sleep(60)"], 2.0)
    assert (late["a"], late["error"]) == (1, "stopped after 2 s")
    broken = gpu.run([sys.executable, "-c", found + "raise OSError('gone')"], 20.0)
    assert broken["a"] == 1
    assert "gone" in broken["error"]
    assert "error" not in gpu.run([sys.executable, "-c", found], 20.0)


def test_every_stage_has_a_limit_and_all_fit_into_eight_minutes(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_stages

    assert gpu_stages.STAGES.keys() == gpu.LIMITS.keys()
    assert gpu.WHOLE < 480
