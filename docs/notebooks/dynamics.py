# %% [markdown]
# # How far is my training from gradient flow?
#
# Theories of learning speak of gradient flow, training by infinitely small steps. Experiments run
# SGD. How far apart are the two? Conserved quantities answer without a second simulation: a ReLU
# network has, for every hidden unit, a quantity that gradient flow cannot change,
#
# Q = ½ (‖weights in‖² + bias² − ‖weights out‖²),
#
# because the weights into a ReLU times *a* and those out of it divided by *a* make the same
# network. What moves Q is the distance from gradient flow, and it can be split into its causes.

# %%
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import eqtoolbox as eq
from eqtoolbox.probes import Conservation

torch.set_num_threads(1)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
labels = torch.tensor(digits.target)


def trained(lr, run_dir, time=10.0, **options):
    """All digits at once, for time / lr steps of SGD: the same time for every learning rate."""
    torch.manual_seed(0)
    model, criterion = (
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        nn.CrossEntropyLoss(),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **options)
    probes = [Conservation()]
    with eq.attach(
        model,
        optimizer,
        criterion=criterion,
        probes=probes,
        schedule=1,
        budget=None,
        run_dir=run_dir,
    ):
        for _ in range(round(time / lr)):
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
    return eq.Run(run_dir)


def last(run, quantity):
    return float(run.series(f"conservation/{quantity}/rescale")[1][-1])


rates = [0.4, 0.2, 0.1, 0.05]
runs = [trained(lr, f"runs/sgd-{lr}") for lr in rates]
for lr, run in zip(rates, runs, strict=True):
    print(f"learning rate {lr:4}: the charges drifted by {last(run, 'drift'):.2%}")

# %% [markdown]
# ## A law, and not only a trend
#
# One step moves Q by η² Q(g), where Q(g) is the same formula with the gradient in place of the
# weights. Over a fixed time there are 1/η steps, so the drift must fall with the first power of the
# learning rate, and the first step with the second.

# %%
drifts = [last(run, "drift") for run in runs]
firsts = [run.series("conservation/step_drift/rescale")[1][0] for run in runs]
drift_power = np.polyfit(np.log(rates), np.log(drifts), 1)[0]
first_power = np.polyfit(np.log(rates), np.log(firsts), 1)[0]
print(f"drift over a fixed time: power {drift_power:.2f} of the learning rate")
print(f"drift of the first step: power {first_power:.2f}")

# %% [markdown]
# Both powers come out. The closed form holds step by step too, and the causes add up:

# %%
print(f"closed form: off by {max(last(run, 'forecast_error') for run in runs):.0e} of the drift")
closure = max(run.series("conservation/closure/rescale")[1].max() for run in runs)
print(f"what the causes leave unexplained: {closure:.0e}")

# %% [markdown]
# ## What moves it in practice
#
# Nobody trains with plain SGD. The same time with weight decay, or with momentum:

# %%
decayed = trained(0.1, "runs/decayed", weight_decay=1e-2)
pushed = trained(0.01, "runs/pushed", momentum=0.9, time=1.0)  # steps become 10 times longer
shares = {}
for name, run in {"plain": runs[2], "weight decay": decayed, "momentum": pushed}.items():
    shares[name] = {c: last(run, f"share_{c}") for c in ("finite_step", "decay", "optimizer")}
    told = ", ".join(f"{share:.0%} {cause}" for cause, share in shares[name].items())
    print(f"{name:12} drifted {last(run, 'drift'):.2%}: {told}")

# %%
decayed.plot("conservation/drift/rescale")

# %%
coarse = trained(0.4, "runs/coarse", weight_decay=1e-2)
print(f"weight decay at four times the learning rate: {last(coarse, 'drift'):.2%}")

# %% [markdown]
# With weight decay the question of the finite step becomes idle: decay moves the charges many times
# further, and nearly as far at any learning rate. With momentum most of the drift is the memory
# of the optimizer. Only for plain SGD a small learning rate means to be close to gradient flow.
#
# ## The remedy: a learning rate for a given distance
#
# Since drift is proportional to the learning rate, one run tells which learning rate keeps the
# balance to one part in a thousand over this time:

# %%
wanted = 0.001
lr = 10 / round(10 / (wanted * rates[1] / drifts[1]))  # a whole number of steps
checked = trained(lr, "runs/checked")
print(f"learning rate {lr:.3f}: asked for {wanted:.2%}, measured {last(checked, 'drift'):.3%}")

# %% [markdown]
# The formulas, with their sources, are in [The laws](../laws.md); what every record means, in
# [The records](../records.md). The same with your own model: attach it with the probe
# `conservation`, and the families that it has are found by themselves
# ([What is found by itself](../howto/symmetries.md)).
