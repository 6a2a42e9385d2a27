"""Lightning: `python with_lightning.py` starts both processes."""

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import eqtoolbox as eq
from eqtoolbox.integrations.lightning import EqCallback


class Digits(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def main(run_dir="runs/with_lightning"):
    pl.seed_everything(0, verbose=False)
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))
    probes = [eq.probes.Curvature(k=1), eq.probes.Conservation()]
    how = {"probes": probes, "schedule": 5, "budget": None, "run_dir": run_dir}
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1,
        callbacks=[EqCallback(**how)],
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    model = Digits()
    trainer.fit(model, DataLoader(data, batch_size=64))
    return model


if __name__ == "__main__":
    main()
