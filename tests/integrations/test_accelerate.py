"""An Accelerate loop with a monitor: same training, right numbers, trackers, resumed runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import eqtoolbox as eq
from eqtoolbox.integrations.accelerate import attach
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature
from tests.conftest import blobs, mlp
from tests.integrations.dense import sharpness
from tests.integrations.records import rows
from tests.neutrality.test_neutrality import digest

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def reset() -> None:
    """Accelerate keeps its state in singletons: make them new."""
    forget()


def forget() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Loop:
    """A loop as Accelerate's users write it, with everything that it leaves behind."""

    def __init__(self, folder: Path, run_dir: Path | None = None, **options: Any) -> None:
        resume = options.pop("resume", None)
        save_at, stop, trackers = (
            options.pop("save_at", None),
            options.pop("stop", 8),
            options.pop("trackers", ()),
        )
        torch.manual_seed(0)
        model = mlp(6, 5, 3, activation=nn.Tanh)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = DataLoader(TensorDataset(*blobs(64)), batch_size=8)
        scaler = options.pop("scaler", None)
        accelerator = Accelerator(cpu=True, log_with=list(trackers), project_dir=folder, **options)
        if scaler is not None:  # which Accelerate itself makes on an accelerator only
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scaler, growth_interval=2)
            accelerator.native_amp = True
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        evaluate = loss_fn
        self.monitor = None
        if run_dir is not None:
            self.monitor = attach(
                accelerator,
                eq.attach(
                    model, optimizer, probes=[Curvature(k=1), Conservation()], schedule=1,
                    budget=None, run_dir=run_dir, on_error="raise", resume=resume is not None,
                ),
            )  # fmt: skip
            evaluate = self.monitor.loss(loss_fn)
        if trackers:
            accelerator.init_trackers("test")
        self.rows: list[str] = []
        self.weights: list[dict[str, Tensor]] = []
        self.losses: list[float] = []
        if resume is not None:
            accelerator.load_state(resume)
        done = 0 if resume is None else int(resume.name)
        for index, batch in enumerate(loader):
            if index < done:
                continue
            if index == stop:
                break
            with accelerator.accumulate(model):
                self.weights.append({n: p.detach().clone() for n, p in model.named_parameters()})
                loss = evaluate(model, batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            self.losses.append(loss.item())
            self.rows.append(
                digest(model.state_dict(), optimizer.state_dict(), torch.get_rng_state())
            )
            if save_at == index + 1:
                accelerator.save_state(folder / str(save_at))
        if self.monitor is not None:
            self.monitor.close()
        accelerator.end_training()


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"mixed_precision": "bf16"},
    "accumulated": {"gradient_accumulation_steps": 2},
    "fp16": {"mixed_precision": "fp16", "scaler": 1024.0},
}


@pytest.mark.parametrize("case", CASES)
def test_training_is_bit_identical_and_the_loss_is_the_one_that_trains(
    tmp_path: Path, case: str
) -> None:
    alone = Loop(tmp_path, **CASES[case])
    forget()
    watched = Loop(tmp_path, tmp_path / "run", **CASES[case])
    assert watched.rows == alone.rows
    run = eq.Run(tmp_path / "run")
    steps = 4 if case == "accumulated" else 8
    assert list(run.series("curvature/sharpness")[0]) == list(range(steps))
    assert run.series("monitor/closure_grad_cos")[1] == pytest.approx(
        [1.0] * len(run.series("curvature/sharpness")[0]), abs=1e-6
    )
    means = torch.tensor(watched.losses).view(steps, -1).mean(1)
    assert run.series("training/loss")[1] == pytest.approx(means.tolist(), rel=1e-5)


@pytest.mark.parametrize("case", ["plain", "bf16"])
def test_the_sharpness_is_that_of_a_dense_hessian_in_full_precision(
    tmp_path: Path, case: str
) -> None:
    """Accelerate patches `forward` with an autocast that nothing outside can switch off."""
    watched = Loop(tmp_path, tmp_path / "run", **CASES[case])
    values = eq.Run(tmp_path / "run").series("curvature/sharpness")[1]
    x, y = blobs(64)
    for step in (0, 7):
        batch = (x[8 * step : 8 * step + 8].double(), y[8 * step : 8 * step + 8])
        twin = mlp(6, 5, 3, activation=nn.Tanh).double()
        expected = sharpness(twin, lambda m, b=batch: loss_fn(m, b), watched.weights[step])
        assert values[step] == pytest.approx(expected, rel=1e-3)


def test_trackers_get_the_numbers(tmp_path: Path) -> None:
    Loop(tmp_path, tmp_path / "run", trackers=["tensorboard"])
    steps, values = eq.Run(tmp_path / "run").series("curvature/sharpness")
    curve = (
        EventAccumulator(str(tmp_path / "test")).Reload().Scalars("eqtoolbox/curvature/sharpness")
    )
    assert [e.step for e in curve] == list(steps)
    assert [e.value for e in curve] == pytest.approx(list(values), rel=1e-6)
    board = EventAccumulator(str(tmp_path / "test")).Reload()
    assert "eqtoolbox/findings/text_summary" in board.Tags()["tensors"]


def test_a_resumed_run_gives_the_records_of_an_uninterrupted_one(tmp_path: Path) -> None:
    Loop(tmp_path, tmp_path / "whole")
    Loop(tmp_path, tmp_path / "cut", save_at=3, stop=5)
    Loop(tmp_path, tmp_path / "cut", resume=tmp_path / "3")
    assert {r.segment for r in eq.Run(tmp_path / "cut").records()} == {0, 1}
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
