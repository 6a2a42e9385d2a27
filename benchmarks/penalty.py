"""Trains under the penalty of a claim: a classifier that collapses, and a regression that does not.

python benchmarks/penalty.py     a table and benchmarks/results/penalty.json; three minutes
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from environment import store
from torch import Tensor, nn

from eqtoolbox.demos.digits import load_digits
from eqtoolbox.demos.robot import MIRROR, PlainArm, load
from eqtoolbox.demos.rotated import TURNS
from eqtoolbox.enforce import penalty
from eqtoolbox.symmetry import Equivariance, equivariance_error
from eqtoolbox.symmetry.actions import quarter_turn

SEEDS, BATCH = (0, 1, 2), 64
Loss = Callable[[Tensor, Tensor], Tensor]


def digit_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def trained(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    claim: Equivariance,
    weight: float,
    data: tuple[Tensor, Tensor],
    loss: Loss,
    steps: int,
    seed: int,
) -> Any:
    """The penalty that it was trained under; None at weight 0."""
    held = penalty(claim, weight, seed=seed) if weight else None
    draw = torch.Generator().manual_seed(seed + 9)
    for _ in range(steps):
        rows = torch.randint(len(data[0]), (BATCH,), generator=draw)
        x, y = data[0][rows], data[1][rows]
        outputs = model(x)
        value = loss(outputs, y)
        if held is not None:
            value = value + held(model, x, outputs)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    model.eval()
    return held


def digits(weight: float, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model, data = digit_net(), load_digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    held = trained(model, optimizer, TURNS, weight, data.train, F.cross_entropy, 300, seed)
    x, y = data.test
    turns = torch.randint(4, (len(y),), generator=torch.Generator().manual_seed(1))
    turned = torch.stack([quarter_turn(int(k), one) for k, one in zip(turns, x, strict=True)])
    with torch.no_grad():
        right = [float((model(z).argmax(1) == y).float().mean()) for z in (x, turned)]
    return {"upright": right[0], "turned": right[1]} | told(model, x[:128], TURNS, held)


def robot(weight: float, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model, data = PlainArm(), load()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    held = trained(model, optimizer, MIRROR, weight, data.train, F.mse_loss, 1000, seed)
    x, y = data.test
    with torch.no_grad():
        error = float((model(x) - y).norm() / y.norm())
    return {"torque_error": error} | told(model, x[:128], MIRROR, held)


def told(model: nn.Module, x: Tensor, claim: Equivariance, held: Any) -> dict[str, Any]:
    found = equivariance_error(model, x, claim)
    return {
        "equivariance_error": found.relative_error,
        "alarm": held.collapsed_at if held else None,
    }


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for task in (digits, robot):
        for weight in (0.0, 0.1, 1.0, 10.0):
            found = [task(weight, seed) for seed in SEEDS]
            row: dict[str, Any] = {"task": task.__name__, "weight": weight}
            for key in found[0]:
                values = [f[key] for f in found]
                row[key] = [round(v, 4) if isinstance(v, float) else v for v in values]
            rows.append(row)
            print(row, flush=True)
    store("penalty", rows)


if __name__ == "__main__":
    main()
