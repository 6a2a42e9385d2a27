"""What is said of errors is short, and runs that nobody closed do not keep their files open."""

import gc
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.sinks.jsonl import MANY
from tests.conftest import blobs, mlp

LONG = 100_000


def test_a_long_error_of_a_loss_is_cut_wherever_it_is_told(tmp_path: Path) -> None:
    model = mlp(6, 8, 3)
    optimizer, mark = torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "fail"

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if mark.exists():
            raise ValueError("begin " + "x" * LONG + " end")
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    with (
        warnings.catch_warnings(record=True) as seen,
        eq.attach(
            model, optimizer, probes={"curvature": {"k": 1}}, schedule=1, budget=None,
            run_dir=tmp_path / "run",
        ) as monitor,
    ):  # fmt: skip
        warnings.simplefilter("always")
        value = monitor.loss(loss)(model, blobs())
        mark.touch()
        value.backward()
        optimizer.step()
    (said,) = [str(w.message) for w in seen if "failed with ValueError" in str(w.message)]
    assert "begin xxx" in said
    assert said.endswith("xxx end")
    assert "letters left out" in said
    assert len(said) < 2_200
    for name, longest in (("records.jsonl", 6_000), ("events.jsonl", 21_000)):
        rows = (tmp_path / "run" / name).read_text().splitlines()
        assert any("letters left out" in row for row in rows)
        assert max(map(len, rows)) < longest
        assert [json.loads(row) for row in rows]


def _opened() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts files as Linux shows them")
def test_runs_that_were_left_unclosed_are_closed_before_many_are_open(tmp_path: Path) -> None:
    gc.collect()
    before, most = _opened(), 0
    gc.disable()  # as where little is allocated between two runs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            for k in range(4 * MANY):
                model = nn.Linear(2, 1)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                eq.attach(model, optimizer, probes="light", run_dir=tmp_path / f"run-{k}")
                most = max(most, _opened() - before)
            del model, optimizer
            gc.collect()
    finally:
        gc.enable()
    assert most <= 4 * (MANY + 2)
    assert _opened() <= before + 4
