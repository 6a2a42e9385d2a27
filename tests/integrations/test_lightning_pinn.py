"""A field that a training_step differentiates, trained by L-BFGS in Lightning."""

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import eqtoolbox as eq
from eqtoolbox.integrations.lightning import EqCallback
from tests.conftest import mlp
from tests.integrations.dense import sharpness
from tests.neutrality.watch import digest

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own advice


class Field(pl.LightningModule):
    """u' = cos x, u(0) = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.u = mlp(1, 6, 1, activation=nn.Tanh)

    def training_step(self, batch: Any, _: int) -> Tensor:
        x = batch[0].clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(self.u(x).sum(), x, create_graph=True)
        return (slope - torch.cos(x)).square().mean() + self.u(torch.zeros(1, 1)).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=4)


def residual(u: nn.Module, x: Tensor) -> Tensor:
    """The loss of a batch, again."""
    x = x.to(next(u.parameters()).dtype).requires_grad_(True)
    (slope,) = torch.autograd.grad(u(x).sum(), x, create_graph=True)
    return (slope - torch.cos(x)).square().mean() + u(0 * x[:1].detach()).square().mean()


def fitted(folder: Path, *callbacks: Any) -> tuple[Field, Field, Tensor]:
    """The field before and after two steps, and the first batch."""
    torch.manual_seed(0)
    field, data = Field(), torch.rand(32, 1)
    start = copy.deepcopy(field)
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[*callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(field, DataLoader(TensorDataset(data), batch_size=16))
    return start, field, data[:16]


def test_a_field_trained_by_lbfgs_is_measured_and_stays_the_same(tmp_path: Path) -> None:
    probe = EqCallback(run_dir=tmp_path / "run", probes="standard", budget=None, schedule=1)
    start, watched, batch = fitted(tmp_path, probe)
    _, alone, _ = fitted(tmp_path)
    assert digest(watched.state_dict()) == digest(alone.state_dict())
    found = eq.Run(tmp_path / "run").records()
    assert not [r for r in found if r.status == "failed"]
    first = {r.name: r for r in found if r.step == 0}
    expected = sharpness(start.u, lambda u: residual(u, batch), dict(start.u.named_parameters()))
    assert first["curvature/sharpness"].value == pytest.approx(expected, rel=2e-3)
    assert any(r.probe == "discrete" and r.status == "ok" for r in found)  # units permute
