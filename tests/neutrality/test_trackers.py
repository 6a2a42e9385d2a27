"""Training is bit-identical with trackers, histograms, and validation between the steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.probes import Asymmetry, EquivarianceError, LearnedAlgebra
from eqtoolbox.sinks.memory import MemorySink
from tests.neutrality.test_neutrality import STEPS, train

PAIR = (
    torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3)),
    torch.tensor([0, 1, 2, 0, 1, 2]),
)
MODEL_ONLY = [
    EquivarianceError(symmetries=["flip"]),
    Asymmetry(symmetries=["flip"]),
    LearnedAlgebra(),
]


def validated(how: str, monitor: eq.Monitor | None, model: nn.Module) -> None:
    """Validation as loops do it, and with a monitor its probes."""
    modes = [m.training for m in model.modules()]
    model.eval()
    with torch.inference_mode() if how == "inference" else torch.no_grad():
        batch = tuple(torch.stack(list(x)) for x in PAIR)
        assert batch[0].is_inference() == (how == "inference")
        if monitor is not None:
            monitor.validate(batch)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode


@pytest.mark.parametrize("how", ["no_grad", "inference"])
def test_training_is_bit_identical_with_validation_after_each_step(how: str) -> None:
    sink = MemorySink()

    def attach(model: nn.Module, optimizer: Any) -> eq.Monitor:
        return eq.attach(
            model, optimizer, probes=MODEL_ONLY, schedule=3, budget=None, sinks=[sink],
            on_error="raise",
        )  # fmt: skip

    between = lambda monitor, model: validated(how, monitor, model)
    assert train(attach, between=between) == train(None, between=between)
    rows = [r for r in sink.records if r.name == "validation.equivariance/relative_error/flip"]
    assert [r.step for r in rows] == list(range(1, STEPS + 1))
    assert all(r.status == "ok" and r.mode == "eval" for r in rows)
    measured = {r.probe for r in sink.records if r.status == "ok"}
    beside = {probe for probe in measured if f"validation.{probe}" in measured}
    assert beside == measured & {"equivariance", "asymmetry", "discovery"}


def test_the_digest_sees_a_validation_that_leaves_a_trace() -> None:
    between = lambda monitor, model: validated("no_grad", None, model)
    stray = lambda monitor, model: (between(None, model), model.norm.running_mean.add_(1e-3))
    assert train(None, between=between) != train(None, between=stray)


def test_training_is_bit_identical_with_trackers_histograms_and_findings(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path / "board"))

    def attach(model: nn.Module, optimizer: Any) -> eq.Monitor:
        return eq.attach(
            model, optimizer, schedule=1, budget=None, probes="light", sinks=[writer],
            run_dir=tmp_path / "run", histograms=True, on_error="raise",
        )  # fmt: skip

    assert train(attach) == train(None)
    writer.close()
    drawn = eq.Run(tmp_path / "run").array("histogram/gradient/conv.weight")
    assert list(drawn[0]) == list(range(STEPS))
