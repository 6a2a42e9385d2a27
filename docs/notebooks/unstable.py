# %% [markdown]
# # Why does this training get stuck?
#
# A small network is to read handwritten digits. Somebody has raised the learning rate to be done
# sooner, and now the loss stays high. Is it the data, the network, or the step? We watch one
# training, read what was found, and take the remedy from the numbers.

# %%
import torch
from sklearn.datasets import load_digits
from torch import nn

import eqtoolbox as eq
from eqtoolbox.probes import Curvature

torch.set_num_threads(1)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
labels = torch.tensor(digits.target)
when = eq.at([*range(0, 40, 4), *range(40, 200, 20)])  # often at first, then now and then


def trained(lr, run_dir, warm_up=1):
    """A perceptron, trained for 200 steps with the monitor attached: the run, and its accuracy."""
    torch.manual_seed(0)
    model, criterion = (
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
        nn.CrossEntropyLoss(),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    probes = [Curvature(k=1)]
    with eq.attach(
        model,
        optimizer,
        criterion=criterion,
        probes=probes,
        schedule=when,
        budget=None,
        run_dir=run_dir,
    ):
        for step in range(200):
            optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / warm_up)
            batch = torch.randperm(1400, generator=order)[:256]
            optimizer.zero_grad()
            criterion(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        right = model(images[1400:]).argmax(1) == labels[1400:]
    return eq.Run(run_dir), float(right.float().mean())


stuck, accuracy = trained(lr=1.5, run_dir="runs/stuck")
steps, loss = stuck.series("training/loss")
print(f"loss {loss[0]:.2f} at the start, {loss[-1]:.2f} at the end")
print(f"{accuracy:.0%} of the digits that it has not seen are read rightly")

# %% [markdown]
# ## What was found
#
# The run was written to `runs/stuck`. Its findings come gravest first; one that is a fault says
# where it is and what to try.

# %%
for finding in stuck.findings()[:2]:
    print(f"{finding.level}: {finding.text}")
    for remedy in finding.remedy:
        print(f"    try: {remedy}")

# %% [markdown]
# Most of the hidden units are dead: they give 0 for every image, so no gradient reaches them any
# more, and no training will wake them. The data are innocent. But who killed the units?
#
# ## When it happened
#
# `curvature/stability` is the sharpness of the loss over what the optimizer can bear, here SGD with
# momentum at this learning rate. Above 1 a step in the sharpest direction overshoots by more than
# it had to go.

# %%
stuck.plot("curvature/stability")

# %%
steps, stability = stuck.series("curvature/stability")
worst = int(stability.argmax())
print(f"above 1 at steps {steps[stability > 1].tolist()}")
print(f"at most {stability[worst]:.1f}, at step {steps[worst]}")
print(f"there, a learning rate of {1.5 / stability[worst]:.2f} would have been the edge")

# %% [markdown]
# The first steps did it. At step 0 the loss is still flat and 1.5 is a fine learning rate; a few
# steps later the network has learned something, the loss is steep, and the same learning rate is
# far too large. By the time the curvature has come down again, the units are gone.
#
# ## The remedy
#
# So it is not the learning rate as such but when it comes. The finding said: warm it up. The same
# learning rate again, reached in 50 steps:

# %%
warm, warm_accuracy = trained(lr=1.5, run_dir="runs/warm", warm_up=50)
print(f"loss {warm.series('training/loss')[1][-1]:.4f} at the end")
print(f"{warm_accuracy:.0%} of the digits that it has not seen are read rightly")
dead = [finding.text for finding in warm.findings() if finding.id in ("dead-units", "dead-layer")]
print("dead units:", dead or "none to speak of")
steps, stability = warm.series("curvature/stability")
print(f"above 1 at steps {steps[stability > 1].tolist()}, at most {stability.max():.1f}")

# %% [markdown]
# It overshoots once, after it has found its way, and that does no harm. Or take a learning rate
# below the edge that was measured above, from the first step on:

# %%
calm, calm_accuracy = trained(lr=0.5, run_dir="runs/calm")
_, stability = calm.series("curvature/stability")
print(f"stability at most {stability.max():.2f}, accuracy {calm_accuracy:.0%}")

# %% [markdown]
# Both learn. The measurement cost a Hessian product here and there; it told a step that is too
# long from a network that is too small, which the loss alone cannot do.
#
# Read on: [An unstable run](../howto/unstable.md), [What can be wrong](../diseases.md).
