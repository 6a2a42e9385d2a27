"""A plain loop: `torchrun --nproc_per_node 2 ddp_loop.py`."""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import eqtoolbox as eq


def main(run_dir="runs/ddp_loop"):
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))
    share = 128 // dist.get_world_size()
    loader = DataLoader(data, share, sampler=DistributedSampler(data, shuffle=False))
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    criterion = nn.CrossEntropyLoss()

    # on every rank, after DistributedDataParallel; the first one writes
    probes = [eq.probes.Curvature(k=1), eq.probes.Conservation()]
    how = {"probes": probes, "schedule": 5, "budget": None, "run_dir": run_dir}
    with eq.attach(model, optimizer, criterion=criterion, **how):
        for inputs, labels in loader:
            optimizer.zero_grad()
            criterion(model(inputs), labels).backward()
            optimizer.step()
    return model.module


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
