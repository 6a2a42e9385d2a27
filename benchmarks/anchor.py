"""Trains digits under weight decays from right to far too large, with an anchor and without.

python benchmarks/anchor.py     a table and benchmarks/results/anchor.json; two minutes
"""

import torch
import torch.nn.functional as F
from environment import store
from torch import Tensor, nn

from eqtoolbox import act
from eqtoolbox.demos.digits import load_digits

SEEDS, STEPS, BATCH = (0, 1, 2), 600, 128
DECAYS = (0.003, 0.01, 0.03, 0.05)
SCALES = (None, 0.01, 0.1)  # None: no anchor
DEAD = 1e-3  # of the largest product of a unit's weights in and out


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    hidden = (nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))


def dead(model: nn.Sequential) -> int:
    """Units whose weights in and out have next to no product: they carry nothing."""
    count = 0
    for here, there in ((1, 3), (3, 5)):
        into = torch.cat([model[here].weight, model[here].bias[:, None]], 1).norm(dim=1)
        size = into * model[there].weight.norm(dim=0)
        count += int((size < DEAD * size.max()).sum())
    return count


def rank(model: nn.Sequential, x: Tensor) -> int:
    """Directions of the last hidden layer above 1 % of the largest."""
    hidden = model[:5](x)
    values = torch.linalg.svdvals(hidden - hidden.mean(0))
    return int((values > 1e-2 * values[0]).sum())


def run(kind: str, decay: float, scale: float | None, seed: int) -> dict[str, float]:
    (x, y), (test_x, test_y) = load_digits().train, load_digits().test
    model = network(seed)
    if kind == "SGD":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay)
    else:  # decay beside the gradient: lr gamma as SGD's
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=100 * decay)
    if scale is not None:
        act.anchor(optimizer, scale=scale, seed=seed)
    draw = torch.Generator().manual_seed(seed + 5)
    for _ in range(STEPS):
        chosen = torch.randint(len(x), (BATCH,), generator=draw)
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        return {
            "loss": float(F.cross_entropy(model(x), y)),
            "test": float((model(test_x).argmax(1) == test_y).float().mean()),
            "dead": dead(model),
            "rank": rank(model, test_x),
        }


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for kind in ("SGD", "AdamW"):
        for decay in DECAYS:
            for scale in SCALES:
                found = [run(kind, decay, scale, seed) for seed in SEEDS]
                row = {"optimizer": kind, "decay": decay, "scale": scale, "seeds": len(SEEDS)}
                row |= {key: [round(f[key], 4) for f in found] for key in found[0]}
                rows.append(row)
                print(row, flush=True)
    store("anchor", rows)


if __name__ == "__main__":
    main()
