"""Callbacks that measure at each validation: the right number, named so, and no trace left."""

import copy
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from transformers import Trainer, TrainingArguments

import eqtoolbox as eq
from eqtoolbox.integrations.lightning import EqCallback as LightningCallback
from eqtoolbox.integrations.transformers import EqCallback as TrainerEqCallback
from eqtoolbox.probes import EquivarianceError
from eqtoolbox.symmetry import Equivariance, Flip, equivariance_error
from eqtoolbox.symmetry.actions.action import trivial
from tests.conftest import blobs
from tests.integrations.test_lightning import Trail as LightningTrail
from tests.integrations.test_transformers import Trail as TrainerTrail

pytestmark = pytest.mark.filterwarnings("ignore:(?!eqtoolbox)")

MIRROR = Equivariance(Flip(), lambda g, x: x.flip(-1) if g else x, trivial, name="mirror")
NAME = "validation.equivariance/relative_error/mirror"


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)
    )


def error(model: nn.Module, inputs: Tensor) -> float:
    """Of a copy in evaluation mode, by itself."""
    with torch.inference_mode(False):
        twin = copy.deepcopy(model).eval()
        return equivariance_error(twin, inputs.clone(), MIRROR).relative_error


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.expected = net(), []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and not self.trainer.sanity_checking:
            state = torch.get_rng_state()
            self.expected.append(error(self.net, batch[0]))
            torch.set_rng_state(state)
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def probing(kind: Any, run_dir: Path, **options: Any) -> Any:
    return kind(
        run_dir=run_dir, probes=[EquivarianceError(symmetries=[MIRROR])], schedule=1, budget=None,
        on_error="raise", **options,
    )  # fmt: skip


def fit(folder: Path, *callbacks: Any, **options: Any) -> Any:
    pl.seed_everything(0, verbose=False)
    module, trail = Module(), LightningTrail()
    loader = lambda shuffle: DataLoader(TensorDataset(*blobs(48)), batch_size=16, shuffle=shuffle)
    trainer = pl.Trainer(
        default_root_dir=folder, accelerator="cpu", devices=1, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, logger=False, max_epochs=3,
        callbacks=[*callbacks, trail], **options,
    )  # fmt: skip
    trainer.fit(module, loader(True), loader(False))
    return module, trail.rows


@pytest.mark.parametrize("inference", [True, False])
def test_lightning_measures_each_validation_and_trains_as_before(
    tmp_path: Path, inference: bool
) -> None:
    _, alone = fit(tmp_path, inference_mode=inference)
    watching = probing(LightningCallback, tmp_path / "run", validation=True)
    module, watched = fit(tmp_path, watching, inference_mode=inference)
    assert watched == alone
    run = eq.Run(tmp_path / "run")
    steps, values = run.series(NAME)
    assert list(steps) == [3, 6, 9], "steps taken before the validation"
    assert list(values) == pytest.approx(module.expected, rel=1e-5)
    assert all(r.mode == "eval" and r.floor for r in run.records(NAME))
    assert not [e for e in run.events if e["kind"] == "error"]


def test_nothing_is_measured_at_validations_that_is_not_asked_for(tmp_path: Path) -> None:
    fit(tmp_path, probing(LightningCallback, tmp_path / "run"))
    assert not [n for n in eq.Run(tmp_path / "run").names() if "validation" in n]


class Points(Dataset[Any]):
    """Draws as it is read, as data sets that augment do."""

    def __init__(self, samples: int) -> None:
        self.x, self.y = blobs(samples)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        torch.rand(1)
        return {"x": self.x[i], "labels": self.y[i]}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([Points(8)[i] for i in range(8)])


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Expected(TrainerTrail):
    def __init__(self) -> None:
        super().__init__()
        self.errors: list[float] = []

    def on_evaluate(
        self, args: Any, state: Any, control: Any, *, model: Any, **others: Any
    ) -> None:
        self.errors.append(error(model.net, Points(48).x[:8]))


def train(folder: Path, *callbacks: Any, held_out: Any = None, **options: Any) -> Any:
    trail = Expected()
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=4, learning_rate=0.05,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, seed=0, optim="sgd",
        eval_strategy="steps", eval_steps=2, dataloader_pin_memory=False, **options,
    )  # fmt: skip
    trainer = Trainer(
        model=WithLoss(), args=arguments, train_dataset=Points(24),
        eval_dataset=held_out or Points(48), callbacks=[*callbacks, trail],
    )  # fmt: skip
    return trainer, trail


def test_the_trainer_measures_each_evaluation_and_trains_as_before(tmp_path: Path) -> None:
    trainer, alone = train(tmp_path)
    trainer.train()
    watching = probing(TrainerEqCallback, tmp_path / "run", validation=True)
    trainer, watched = train(tmp_path, watching)
    trainer.train()
    assert watched.rows == alone.rows and watched.errors == alone.errors
    run = eq.Run(tmp_path / "run")
    steps, values = run.series(NAME)
    assert list(steps) == [2, 4]
    assert list(values) == pytest.approx(watched.errors, rel=1e-5)
    assert any("eqtoolbox/worst/validation_error" in row for row in trainer.state.log_history)


def test_a_decorated_loss_is_that_of_evaluations_too(tmp_path: Path) -> None:
    watching = probing(TrainerEqCallback, tmp_path / "run", validation=True)
    trainer, trail = train(tmp_path, watching)
    trainer.compute_loss = watching.loss(trainer.compute_loss)
    trainer.train()
    assert list(eq.Run(tmp_path / "run").series(NAME)[1]) == pytest.approx(trail.errors, rel=1e-5)


def test_a_stream_of_samples_cannot_be_looked_at_and_says_so(tmp_path: Path) -> None:
    watching = probing(TrainerEqCallback, tmp_path / "run", validation=True)
    trainer, _ = train(tmp_path, watching, held_out=Stream())
    with pytest.warns(RuntimeWarning, match=r"needs an evaluation data set with len\(\) and \[i\]"):
        trainer.train()
    assert NAME not in eq.Run(tmp_path / "run")


def test_a_model_card_gets_the_section_once(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    watching = probing(TrainerEqCallback, tmp_path / "run")
    trainer, _ = train(tmp_path, watching)
    trainer.train()
    path = tmp_path / "README.md"
    path.write_text("---\nlicense: mit\n---\n\n# Mine\n")
    watching.add_to_card(path)
    watching.add_to_card(path)
    text = path.read_text()
    assert text.startswith("---\nlicense: mit\n---\n\n# Mine\n")
    assert text.count("## Training diagnostics") == 1
    card = ModelCard(text)
    watching.add_to_card(card)
    assert str(card).count("## Training diagnostics") == 1 and card.data.license == "mit"
    with pytest.raises(ValueError, match="run_dir"):
        TrainerEqCallback().add_to_card(path)


def test_a_trainer_that_is_switched_off_runs_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQTOOLBOX", "off")
    watching = probing(TrainerEqCallback, tmp_path / "run", validation=True)
    trainer, trail = train(tmp_path, watching)
    trainer.compute_loss = watching.loss(trainer.compute_loss)
    trainer.train()
    watching.add_to_card(tmp_path / "README.md")
    assert len(trail.rows) == 4
    assert not (tmp_path / "run").exists() and not (tmp_path / "README.md").exists()
    assert not any(key.startswith("eqtoolbox/") for row in trainer.state.log_history for key in row)
