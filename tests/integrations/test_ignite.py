"""An Ignite engine with a monitor: same training, right numbers, resumed runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver, global_step_from_engine
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.integrations.ignite import attach
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature
from tests.conftest import blobs, mlp
from tests.integrations.dense import sharpness
from tests.integrations.records import rows
from tests.neutrality.test_neutrality import digest


def batches() -> list[tuple[Tensor, Tensor]]:
    x, y = blobs(32)
    return list(zip(x.split(8), y.split(8), strict=True))


class Loop:
    """A supervised trainer with checkpoints, and everything that it leaves behind."""

    def __init__(
        self, folder: Path, run_dir: Path | None = None, *, own: bool = False, epochs: int = 2,
        resume: Path | None = None, **options: Any,
    ) -> None:  # fmt: skip
        torch.manual_seed(0)
        model = mlp(6, 5, 3, activation=nn.Tanh)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        criterion = nn.CrossEntropyLoss()
        trainer = create_supervised_trainer(
            model, optimizer, F.cross_entropy if own else criterion, **options
        )
        kept: dict[str, Any] = {"model": model, "optimizer": optimizer, "trainer": trainer}
        if run_dir is not None:
            how: dict[str, Any] = {"criterion": criterion}
            if own:
                how = {"loss_fn": lambda m, batch: F.cross_entropy(m(batch[0]), batch[1])}
            kept["monitor"] = attach(
                trainer,
                eq.attach(
                    model, optimizer, probes=[Curvature(k=1), Conservation()], schedule=1,
                    budget=None, run_dir=run_dir, on_error="raise", resume=resume is not None,
                    **how,
                ),
            )  # fmt: skip
        self.rows: list[str] = []
        self.weights: list[dict[str, Tensor]] = []

        @trainer.on(Events.ITERATION_STARTED)
        def _before(engine: Engine) -> None:
            self.weights.append({n: p.detach().clone() for n, p in model.named_parameters()})

        @trainer.on(Events.ITERATION_COMPLETED)
        def _after(engine: Engine) -> None:
            grads = [p.grad for p in model.parameters()]
            self.rows.append(
                digest(model.state_dict(), optimizer.state_dict(), grads, torch.get_rng_state())
            )

        saver = Checkpoint(
            kept, DiskSaver(str(folder), require_empty=False),
            global_step_transform=global_step_from_engine(trainer),
        )  # fmt: skip
        trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
        if resume is not None:
            Checkpoint.load_objects(to_load=kept, checkpoint=torch.load(resume))
        trainer.run(batches(), max_epochs=epochs)
        self.monitor = kept.get("monitor")
        self.last = folder / str(saver.last_checkpoint)


@pytest.mark.parametrize("own", [False, True], ids=["criterion", "loss_fn"])
def test_training_is_bit_identical_and_the_loss_is_the_one_that_trains(
    tmp_path: Path, own: bool
) -> None:
    watched = Loop(tmp_path, tmp_path / "run", own=own)
    assert watched.rows == Loop(tmp_path, own=own).rows
    run = eq.Run(tmp_path / "run")
    assert run.series("monitor/closure_grad_cos")[1] == pytest.approx(
        [1.0] * len(run.series("curvature/sharpness")[0]), abs=1e-6
    )
    assert list(run.series("curvature/sharpness")[0]) == list(range(8))
    assert run.info["finished"], "closed with the engine"


def test_gradient_accumulation_counts_optimizer_steps(tmp_path: Path) -> None:
    watched = Loop(tmp_path, tmp_path / "run", gradient_accumulation_steps=2)
    assert watched.rows == Loop(tmp_path, gradient_accumulation_steps=2).rows
    run = eq.Run(tmp_path / "run")
    assert list(run.series("curvature/sharpness")[0]) == list(range(4))
    assert run.series("monitor/closure_grad_ratio")[1] == pytest.approx(
        [1.0] * len(run.series("curvature/sharpness")[0]), rel=1e-5
    )


def test_the_sharpness_is_that_of_a_dense_hessian(tmp_path: Path) -> None:
    watched = Loop(tmp_path, tmp_path / "run", epochs=1)
    values = eq.Run(tmp_path / "run").series("curvature/sharpness")[1]
    for step in (0, 3):
        x, y = batches()[step]
        twin = mlp(6, 5, 3, activation=nn.Tanh).double()
        loss = lambda m, x=x, y=y: F.cross_entropy(m(x.double()), y)
        assert values[step] == pytest.approx(sharpness(twin, loss, watched.weights[step]), rel=1e-3)


def test_a_resumed_run_gives_the_records_of_an_uninterrupted_one(tmp_path: Path) -> None:
    Loop(tmp_path / "a", tmp_path / "whole")
    first = Loop(tmp_path / "b", tmp_path / "cut", epochs=1)
    Loop(tmp_path / "b", tmp_path / "cut", resume=first.last)
    assert {r.segment for r in eq.Run(tmp_path / "cut").records()} == {0, 1}
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
