"""A Lightning Trainer with the callback: same training, right numbers, resumed runs."""

import random
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import eqtoolbox as eq
from eqtoolbox.integrations.lightning import EqCallback, TrainingStep
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature
from tests.conftest import blobs, mlp
from tests.integrations.dense import sharpness
from tests.integrations.records import rows
from tests.neutrality.test_neutrality import digest

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own advice


class Classifier(pl.LightningModule):
    """Dropout, a regulariser, a metric and a list: all that a replayed step could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(mlp(6, 8, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(3)
        self.outputs: list[Tensor] = []
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x + 0.01 * torch.randn_like(x))
        loss = F.cross_entropy(logits, y) + 1e-2 * self.net[-1].weight.square().sum()
        self.accuracy(logits, y)
        self.outputs.append(loss.detach())
        self.calls += 1
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Trail(pl.Callback):
    """Digest of everything after each batch."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        states = [o.state_dict() for o in trainer.optimizers]
        self.rows.append(
            digest(
                pl_module.state_dict(), states, rest[0], [p.grad for p in pl_module.parameters()],
                torch.get_rng_state(), np.random.get_state(), random.getstate(),
                {k: float(v) for k, v in trainer.callback_metrics.items()},
                getattr(pl_module, "calls", 0), getattr(pl_module, "outputs", []),
            )
        )  # fmt: skip


def loader(shuffle: bool) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*blobs(64)), batch_size=16, shuffle=shuffle)


def fit(
    folder: Path,
    *callbacks: Any,
    module: Any = None,
    package: Any = pl,
    ckpt: Any = None,
    shuffle: bool = True,
    **options: Any,
) -> Any:
    pl.seed_everything(0, verbose=False)
    module = (module or Classifier)()
    trail = Trail()
    defaults: dict[str, Any] = {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
    trainer = package.Trainer(
        default_root_dir=folder, accelerator="cpu", devices=1, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*callbacks, trail], **{**defaults, **options},
    )  # fmt: skip
    trainer.fit(module, loader(shuffle), ckpt_path=ckpt)
    trainer.trail = trail.rows
    trainer.final = module
    return trainer


def callback(run_dir: Path | None, **options: Any) -> EqCallback:
    probes = [Curvature(k=1), Conservation()]
    defaults: dict[str, Any] = {"probes": probes, "schedule": 1, "budget": None}
    return EqCallback(run_dir=run_dir, on_error="raise", **{**defaults, **options})


def scaled() -> dict[str, Any]:
    """Half precision with a gradient scaler, on the CPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return {"plugins": [MixedPrecision("16-mixed", device="cpu", scaler=scaler)]}


PRECISIONS: dict[str, Any] = {
    "full": dict,
    "bf16": lambda: {"precision": "bf16-mixed"},
    "fp16": scaled,
    "clipped": lambda: {"gradient_clip_val": 0.1},
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_is_bit_identical_and_the_step_itself_is_the_loss(
    tmp_path: Path, precision: str
) -> None:
    alone = fit(tmp_path, **PRECISIONS[precision]())
    watched = fit(tmp_path, callback(tmp_path / "run"), **PRECISIONS[precision]())
    assert watched.trail == alone.trail
    assert len(alone.trail) == 4
    run = eq.Run(tmp_path / "run")
    cosine = run.series("monitor/closure_grad_cos")[1]
    assert cosine == pytest.approx([1.0] * len(run.series("curvature/sharpness")[0]), abs=1e-6)
    if precision != "clipped":
        assert run.series("monitor/closure_grad_ratio")[1] == pytest.approx(
            [1.0] * len(run.series("curvature/sharpness")[0]), rel=1e-4
        )
    assert list(run.series("curvature/sharpness")[0]) == list(range(4))
    losses = [float(x) for x in watched.final.outputs]
    assert run.series("training/loss")[1] == pytest.approx(losses, rel=1e-6)


def test_a_replayed_step_that_is_not_kept_quiet_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eqtoolbox.integrations.lightning.quiet", lambda module: nullcontext())
    assert fit(tmp_path, callback(None)).trail != fit(tmp_path).trail


class Plain(pl.LightningModule):
    """No random numbers, so that a plain loop can follow; takes the batch only."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 5, 3, activation=nn.Tanh)

    def training_step(self, batch: Any) -> dict[str, Any]:
        return {"loss": F.cross_entropy(self.net(batch[0]), batch[1]), "extra": 1}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Batches(pl.Callback):
    """Parameters and batch of every step, as a plain loop would hold them."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, Tensor], Any]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        weights = {n: p.detach().clone() for n, p in pl_module.named_parameters()}
        self.seen.append((weights, [t.clone() for t in batch]))


def plain_sharpness(weights: dict[str, Tensor], batch: Any) -> float:
    loss = lambda m: F.cross_entropy(m.net(batch[0].double()), batch[1])
    return sharpness(Plain().double(), loss, weights)


def test_the_sharpness_is_that_of_a_dense_hessian(tmp_path: Path) -> None:
    batches = Batches()
    fit(tmp_path, callback(tmp_path / "run"), batches, module=Plain)
    values = eq.Run(tmp_path / "run").series("curvature/sharpness")[1]
    for step in (0, 3):
        assert values[step] == pytest.approx(plain_sharpness(*batches.seen[step]), rel=1e-3)


def test_accumulation_measures_what_the_step_is_made_of(tmp_path: Path) -> None:
    watched = fit(tmp_path, callback(tmp_path / "run"), accumulate_grad_batches=2)
    assert watched.trail == fit(tmp_path, accumulate_grad_batches=2).trail
    run = eq.Run(tmp_path / "run")
    assert list(run.series("curvature/sharpness")[0]) == [0, 1]
    assert run.series("monitor/closure_grad_cos")[1] == pytest.approx(
        [1.0] * len(run.series("curvature/sharpness")[0]), abs=1e-6
    )
    assert run.series("monitor/closure_grad_ratio")[1] == pytest.approx(
        [1.0] * len(run.series("curvature/sharpness")[0]), rel=1e-5
    )
    means = torch.stack(watched.final.outputs).view(2, 2).mean(1)
    assert run.series("training/loss")[1] == pytest.approx(means.tolist(), rel=1e-5)


class Adversaries(pl.LightningModule):
    """Manual optimisation of two networks by two optimizers, each alone with its gradients."""

    toggle = True

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.left, self.right = mlp(6, 4, 3), mlp(6, 4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for net, optimizer in zip((self.left, self.right), self.optimizers(), strict=True):
            if self.toggle:
                self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(cross_entropy(net, batch))
            optimizer.step()
            if self.toggle:
                self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.left, self.right)]


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def test_each_optimizer_of_a_manual_step_has_its_callback(tmp_path: Path) -> None:
    pair = [
        callback(tmp_path / name, module=name, optimizer=i, loss_fn=cross_entropy)
        for i, name in enumerate(("left", "right"))
    ]
    watched = fit(tmp_path, *pair, module=Adversaries)
    assert watched.trail == fit(tmp_path, module=Adversaries).trail
    assert len({c.state_key for c in pair}) == 2
    for name in ("left", "right"):
        run = eq.Run(tmp_path / name)
        assert run.series("monitor/closure_grad_cos")[1] == pytest.approx(
            [1.0] * len(run.series("curvature/sharpness")[0]), abs=1e-6
        )
        assert list(run.series("curvature/sharpness")[0]) == list(range(4))


class Together(Adversaries):
    toggle = False


def both(module: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(module.left, batch) + cross_entropy(module.right, batch)


def test_all_optimizers_of_a_manual_step_are_one_step_together(tmp_path: Path) -> None:
    watched = fit(tmp_path, callback(tmp_path / "run", loss_fn=both), module=Together)
    assert watched.trail == fit(tmp_path, module=Together).trail
    run = eq.Run(tmp_path / "run")
    assert run.series("monitor/closure_grad_cos")[1] == pytest.approx(
        [1.0] * len(run.series("curvature/sharpness")[0]), abs=1e-6
    )
    assert list(run.series("curvature/sharpness")[0]) == list(range(4))


def later() -> int:
    raise MisconfigurationException("accumulation changes")


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({"max_epochs": 2}, 8),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 4),
        ({"max_epochs": -1, "max_steps": 3}, 3),
        ({"max_epochs": 2, "plan": property(lambda _: later())}, None),
    ],
)
def test_the_end_of_the_fit_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], known: int | None
) -> None:
    told, start = list[Any](), EqCallback.start
    if plan := options.pop("plan", None):
        monkeypatch.setattr(pl.Trainer, "estimated_stepping_batches", plan)
    monkeypatch.setattr(
        EqCallback, "start", lambda *a, steps, **k: (told.append(steps), start(*a, steps=steps))[1]
    )
    fit(tmp_path, callback(tmp_path / "run"), module=Plain, **options)
    assert told == [known]


def test_a_missing_optimizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"optimizer=1, but configure_optimizers\(\) returned 1"):
        fit(tmp_path, callback(None, optimizer=1))


def test_a_manual_step_without_a_loss_says_what_to_give(tmp_path: Path) -> None:
    fit(tmp_path, callback(tmp_path / "run", module="left"), module=Adversaries)
    (row, *_) = [r for r in eq.Run(tmp_path / "run").records() if r.name == "curvature/sharpness"]
    assert row.status == "not_applicable"
    assert "@callback.loss" in row.note
    assert "loss_fn=, a function (model, batch) -> loss" in row.note
    assert "monitor" not in row.note  # which whoever has a callback never sees
    (finding,) = [f for f in eq.Run(tmp_path / "run").findings() if "Nothing was" in f.text]
    assert row.note in finding.text


def test_the_trainers_loggers_get_the_numbers(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="tb")]
    fit(tmp_path, callback(tmp_path / "run"), logger=loggers, log_every_n_steps=1)
    table = pandas.read_csv(Path(loggers[0].log_dir) / "metrics.csv")
    drawn = table[["step", "eqtoolbox/curvature/sharpness"]].dropna()
    steps, values = eq.Run(tmp_path / "run").series("curvature/sharpness")
    assert list(drawn["step"]) == list(steps)
    assert list(drawn.iloc[:, 1]) == pytest.approx(list(values), rel=1e-6)
    events = EventAccumulator(loggers[1].log_dir).Reload()
    curve = events.Scalars("eqtoolbox/curvature/sharpness")
    assert [e.step for e in curve] == list(steps)
    assert [e.value for e in curve] == pytest.approx(list(values), rel=1e-6)
    texts = events.Tags()["tensors"]
    assert {"custom_scalars__config__", "eqtoolbox/findings/text_summary"} <= set(texts)


def test_the_loggers_get_what_is_selected_and_histograms_where_asked(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="tb")
    watching = callback(tmp_path / "run", select=["curvature/*"], histograms=True)
    fit(tmp_path, watching, logger=logger, log_every_n_steps=1)
    events = EventAccumulator(logger.log_dir, {"histograms": 0}).Reload()
    ours = {t for t in events.Tags()["scalars"] if t.startswith("eqtoolbox/")}
    assert ours and all(t.startswith("eqtoolbox/curvature/") for t in ours)
    drawn = events.Histograms("eqtoolbox/histogram/gradient/net.3.weight")
    assert [e.step for e in drawn] == list(range(4))
    assert "custom_scalars__config__" not in events.Tags()["tensors"], "a layout of the dozen"


def test_a_resumed_fit_gives_the_records_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """Stopped after an epoch by a checkpoint; a new Trainer, module and callback go on."""
    order: dict[str, Any] = {"module": Plain, "shuffle": False}
    fit(tmp_path, callback(tmp_path / "whole"), max_epochs=2, **order)
    first = fit(tmp_path, callback(tmp_path / "cut"), **order)
    first.save_checkpoint(tmp_path / "last.ckpt")
    again = callback(tmp_path / "cut")
    fit(tmp_path, again, ckpt=tmp_path / "last.ckpt", max_epochs=2, **order)
    assert {r.segment for r in eq.Run(tmp_path / "cut").records()} == {0, 1}
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert len([1 for _, name, _ in rows(tmp_path / "cut") if name == "curvature/sharpness"]) == 8


def test_a_fit_that_goes_on_without_a_checkpoint_appends_too(tmp_path: Path) -> None:
    watching = callback(tmp_path / "run")
    trainer = fit(tmp_path, watching, module=Plain, max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(trainer.final, loader(shuffle=False))
    run = eq.Run(tmp_path / "run")
    assert list(run.series("curvature/sharpness")[0]) == list(range(8))
    assert not [e for e in run.events if e["kind"] == "warning"]


def test_a_run_directory_in_use_is_refused_by_a_fresh_fit(tmp_path: Path) -> None:
    fit(tmp_path, callback(tmp_path / "run"), module=Plain, max_epochs=1)
    with pytest.raises(FileExistsError, match=r"holds a finished run; give a new directory"):
        fit(tmp_path, callback(tmp_path / "run"), module=Plain, max_epochs=1)


def test_both_import_names_run_the_same_callback(tmp_path: Path) -> None:
    import pytorch_lightning  # as much again to import as the new name

    class Step(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(6, 5, 3, activation=nn.Tanh)

        def training_step(self, batch: Any) -> Tensor:
            return cross_entropy(self.net, batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    fit(tmp_path, callback(tmp_path / "new"), module=Plain)
    fit(tmp_path, callback(tmp_path / "old"), module=Step, package=pytorch_lightning)
    assert rows(tmp_path / "old") == rows(tmp_path / "new")


class Stop(pl.Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("power cut")


def test_an_exception_closes_the_run_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, callback(tmp_path / "run"), Stop(), module=Plain)
    run = eq.Run(tmp_path / "run")
    assert run.info["finished"]
    assert run.events[-1]["message"] == "RuntimeError: power cut"
    assert list(run.series("curvature/sharpness")[0]) == [0, 1, 2]


def test_a_step_that_would_wait_for_other_processes_is_refused_and_nothing_stays() -> None:
    class Gathering(Plain):
        def training_step(self, batch: Any) -> Any:
            return self.all_gather(super().training_step(batch)["loss"]).mean()

    module = Gathering()
    module.__dict__["_trainer"] = SimpleNamespace(world_size=2, loggers=[])
    before = dict(module.__dict__)
    with pytest.raises(RuntimeError, match=r"calls all_gather.*give EqCallback\(loss_fn=...\)"):
        TrainingStep(pieces=1)(module, (blobs(8),))
    assert module.__dict__ == before
