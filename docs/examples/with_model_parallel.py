"""Lightning with FSDP2: `python with_model_parallel.py` starts both processes."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

import eqtoolbox as eq
from eqtoolbox.integrations.lightning import EqCallback


class Digits(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))

    def configure_model(self):
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def main(run_dir="runs/with_model_parallel"):
    pl.seed_everything(0, verbose=False)
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))
    probes = [eq.probes.Curvature(k=1), eq.probes.Conservation()]
    how = {"probes": probes, "schedule": 5, "budget": None, "run_dir": run_dir}
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, max_epochs=1, callbacks=[EqCallback(**how)],
        strategy=ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
        ),
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    model = Digits()
    trainer.fit(model, DataLoader(data, batch_size=64))
    return model


if __name__ == "__main__":
    main()
