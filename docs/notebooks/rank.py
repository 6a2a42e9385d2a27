# %% [markdown]
# # How large an adapter does this fine-tuning need?
#
# A network reads upright digits. It is to be adapted to digits that were scanned lying on their
# side, and a low-rank adapter would be cheaper than changing all weights. Of which rank? Usually
# one tries 4, 8, 16. We ask the full fine-tuning once, with a probe of our own of a dozen lines:
# which rank does the *change* of each weight matrix have while it trains?

# %%
import copy
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import nn

import eqtoolbox as eq

torch.set_num_threads(1)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32) / 16
upright, lying = images.flatten(1), images.rot90(1, (1, 2)).flatten(1)
labels = torch.tensor(digits.target)


def trained(model, x, lr, steps=300, **attached):
    """Adam on the first 1400 digits; with the monitor if its options are given."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    order = torch.Generator().manual_seed(0)
    monitor = (
        eq.attach(model, optimizer, criterion=criterion, budget=None, **attached)
        if attached
        else None
    )
    for _ in range(steps):
        batch = torch.randperm(1400, generator=order)[:128]
        optimizer.zero_grad()
        criterion(model(x[batch]), labels[batch]).backward()
        optimizer.step()
    if monitor is not None:
        monitor.close()
    return model


def accuracy(model, x):
    with torch.no_grad():
        return float((model(x[1400:]).argmax(1) == labels[1400:]).float().mean())


torch.manual_seed(0)
network = nn.Sequential(
    nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
)
trained(network, upright, lr=1e-3)
print(f"upright {accuracy(network, upright):.0%}, lying {accuracy(network, lying):.0%}")

# %% [markdown]
# ## The probe
#
# A probe is a class with one method. `reference` is called once, at the first step, and what it
# returns comes back at every measurement: here the weights before fine-tuning. The snapshot holds
# the parameters before and after the step; the probe never sees the living model, and the training
# stays what it would have been.


# %%
@dataclass(frozen=True, kw_only=True)
class ChangedRank(eq.Probe):
    """The rank that holds a share of the energy of each matrix's change since the first step."""

    name, headline, mode = "change", "rank", "train"
    evaluates = False  # it looks at tensors that are there already
    share: float = 0.9

    def reference(self, snapshot, rng):
        return {name: p.clone() for name, p in snapshot.before.items() if p.dim() == 2}

    def measure(self, snapshot, reference, rng):
        for name, start in reference.items():
            energy = torch.linalg.svdvals((snapshot.after[name] - start).double()).square()
            held = energy.cumsum(0) / energy.sum()
            yield eq.Measurement("rank", int((held < self.share).sum()) + 1, name)


full = copy.deepcopy(network)
trained(full, lying, lr=1e-3, probes=[ChangedRank()], schedule=20, run_dir="runs/full")
print(f"lying, all weights changed: {accuracy(full, lying):.0%}")

# %% [markdown]
# ## What it found

# %%
run = eq.Run("runs/full")
run.plot("change/rank")

# %%
ranks = {name: int(run.series(f"change/rank/{name}")[1][-1]) for name in run.targets("change/rank")}
for name, rank in ranks.items():
    print(f"{name}: {tuple(network.state_dict()[name].shape)} changed by a matrix of rank {rank}")

# %% [markdown]
# A matrix of 128 × 128 could have changed in 128 directions, and nine tenths of its change lie in a
# few. They were found early, too: the curves are nearly flat in the second half.
#
# ## The remedy: an adapter of that rank
#
# Freeze the network and let each layer add a product of two thin matrices, of the rank that was
# measured. For comparison, one of rank 2.


# %%
class Adapted(nn.Module):
    def __init__(self, layer, rank):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x):
        return self.layer(x) + x @ self.down.T @ self.up.T


def adapted(ranks):
    torch.manual_seed(1)
    model = copy.deepcopy(network)
    for i, rank in zip((0, 2, 4), ranks, strict=True):
        model[i] = Adapted(model[i], rank)
    trained(model, lying, lr=3e-3)
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"rank {ranks}: {numbers} numbers trained, {accuracy(model, lying):.1%} of lying digits")
    return accuracy(model, lying)


measured = adapted(list(ranks.values()))
smaller = adapted([2, 2, 2])
whole = accuracy(full, lying)
print(f"all {sum(p.numel() for p in full.parameters())} numbers: {whole:.1%}")

# %% [markdown]
# The measured rank is nearly as good as changing everything, with a fifth of the numbers; rank 2 is
# not. One run told what a search over ranks would have.
#
# What else a probe can do (evaluate the loss, give errors and verdicts, be part of a preset) is in
# [A probe of your own](../howto/probe.md).
