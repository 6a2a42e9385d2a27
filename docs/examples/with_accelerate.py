"""Accelerate: `torchrun --nproc_per_node 2 with_accelerate.py`, or `accelerate launch`."""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import eqtoolbox as eq
from eqtoolbox.integrations.accelerate import attach


def main(run_dir="runs/with_accelerate"):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(data, batch_size=32)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    criterion = nn.CrossEntropyLoss()

    # on every process, after prepare(); trackers and run_dir get what the first one writes
    probes = [eq.probes.Curvature(k=1), eq.probes.Conservation()]
    how = {"probes": probes, "schedule": 5, "budget": None, "run_dir": run_dir}
    monitor = eq.attach(model, optimizer, criterion=criterion, **how)
    with attach(accelerator, monitor):
        for inputs, labels in loader:
            with accelerator.accumulate(model):
                accelerator.backward(criterion(model(inputs), labels))
                optimizer.step()
                optimizer.zero_grad()
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    main()
