"""DistributedDataParallel: the first process measures its own share, and none waits for it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import eqtoolbox as eq
from tests.loops.ddp_training import both


def processes(tmp_path: Path, size: int) -> list[dict[str, Any]]:
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.loops.ddp_training", str(rank), str(size),
             str(tmp_path / "store"), str(tmp_path / "run")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2],
        )
        for rank in range(size)
    ]  # fmt: skip
    outputs = [child.communicate(timeout=240) for child in children]
    assert not any(child.returncode for child in children), outputs[0][1]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_train_the_same_with_and_without_and_one_measures(tmp_path: Path) -> None:
    ranks = processes(tmp_path, 2)
    for rank in ranks:
        assert rank["watched"] == rank["alone"]
    assert ranks[0]["watched"]["weights"] == ranks[1]["watched"]["weights"], (
        "both hold the same parameters"
    )
    record = eq.Run(tmp_path / "run")
    assert record.info["processes"] == 2
    assert record.series("training/loss")[1] == pytest.approx(
        ranks[0]["watched"]["losses"], rel=1e-6
    )
    assert list(record.series("curvature/sharpness")[0]) == [0, 1, 2, 3]
    assert record.series("monitor/closure_grad_cos")[1] == pytest.approx([1.0] * 4, abs=1e-6)
    assert record.series("monitor/closure_grad_ratio")[1] == pytest.approx([1.0] * 4, abs=1e-5)
    assert [rank["told"] for rank in ranks] == [[], []], "its share is that of its own loss"


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_one_process_under_ddp_measures_what_trains(tmp_path: Path) -> None:
    rank = both(0, 1, str(tmp_path / "store"), str(tmp_path / "run"))
    assert rank["watched"] == rank["alone"]
    assert rank["told"] == []
    record = eq.Run(tmp_path / "run")
    assert record.series("monitor/closure_grad_cos")[1] == pytest.approx([1.0] * 4, abs=1e-6)
    assert not [r for r in record.records() if r.status == "failed"]
