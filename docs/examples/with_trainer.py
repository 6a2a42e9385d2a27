"""Hugging Face Trainer: `torchrun --nproc_per_node 2 with_trainer.py`."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import Trainer, TrainingArguments

import eqtoolbox as eq
from eqtoolbox.integrations.transformers import EqCallback


class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))

    def forward(self, pixels, labels):
        logits = self.net(pixels)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def main(run_dir="runs/with_trainer"):
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    pixels = torch.tensor(x / 16, dtype=torch.float32)
    rows = [{"pixels": row, "labels": int(label)} for row, label in zip(pixels, y, strict=True)]
    probes = [eq.probes.Curvature(k=1), eq.probes.Conservation()]
    how = {"probes": probes, "schedule": 5, "budget": None, "run_dir": run_dir}
    trainer = Trainer(
        model=Digits(),
        args=TrainingArguments(
            f"{run_dir}-checkpoints", max_steps=12, per_device_train_batch_size=64, use_cpu=True,
            learning_rate=1e-2, report_to=[], save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=rows,
        callbacks=[EqCallback(**how)],
    )  # fmt: skip
    trainer.train()
    return trainer.model


if __name__ == "__main__":
    main()
