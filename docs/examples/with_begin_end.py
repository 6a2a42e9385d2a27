"""A trainer of one's own, as torchtitan has: `torchrun --nproc_per_node 2 with_begin_end.py`.

The loss is evaluated inside of `forward_backward_step`, where nothing but the two calls of the
monitor is new. Its state goes into a distributed checkpoint beside the others.
"""

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import eqtoolbox as eq
from eqtoolbox.integrations.distributed import DistributedState


class Trainer:
    def __init__(self, run_dir):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
        self.model_parts = [DistributedDataParallel(model)]
        self.optimizers = [torch.optim.AdamW(p.parameters(), lr=1e-2) for p in self.model_parts]
        self.loss_fn = nn.CrossEntropyLoss(reduction="sum")
        probes = [eq.probes.Curvature(k=1), eq.probes.Conservation()]
        how = {"probes": probes, "schedule": 5, "budget": None, "run_dir": run_dir}
        self.monitor = eq.attach(self.model_parts[0], self.optimizers, **how)

    def loss(self, model, batch):
        inputs, labels = batch
        return self.loss_fn(model(inputs), labels) / len(labels)

    def forward_backward_step(self, batch):
        self.monitor.begin(self.loss, batch)
        loss = self.loss(self.model_parts[0], batch)
        self.monitor.end(loss)
        loss.backward()

    def train_step(self, batch):
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.forward_backward_step(batch)
        for optimizer in self.optimizers:
            optimizer.step()

    def states(self):
        model = self.model_parts[0].module.state_dict()
        return {"model": model, "monitor": DistributedState(self.monitor)}


def main(run_dir="runs/with_begin_end"):
    trainer = Trainer(run_dir)
    x, y = load_digits(return_X_y=True)
    shares = slice(dist.get_rank(), None, dist.get_world_size())
    share = 128 // dist.get_world_size()
    x, y = torch.tensor(x[shares] / 16, dtype=torch.float32), torch.tensor(y[shares])
    with trainer.monitor:
        for batch in zip(x.split(share), y.split(share), strict=True):
            trainer.train_step(batch)
        dcp.save(trainer.states(), checkpoint_id=f"{run_dir}-checkpoint")
    return trainer.model_parts[0].module


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
