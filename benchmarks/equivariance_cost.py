"""What data-symmetry probes cost in forwards of the same model on the same batch.

Interleaved repetitions, medians of ratios; one line a model: a probe of 8 group elements without
gradients (actions checked before, as from the second measured step on), and Lie derivatives per
generator. Counted rows, which do not depend on the machine, are asserted in the tests.

    python benchmarks/equivariance_cost.py [--repeats 30] [--json results.json]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from environment import environment
from torch import Tensor, nn

from eqtoolbox.symmetry import SO2, SO3, Equivariance, Symmetric, Translations
from eqtoolbox.symmetry.actions import dihedral, trivial
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.group import Dihedral, Group
from eqtoolbox.symmetry.lie import lie_derivative
from eqtoolbox.symmetry.linear import vectors
from eqtoolbox.symmetry.permuting import Permute
from eqtoolbox.symmetry.resampling import FourierShift


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def conv(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0)
    return nn.Sequential(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), Mean())


def mlp(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4)
    )


CASES: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], Group, Callable]] = [
    ("conv 16 channels, 28x28, D4", lambda: conv(16), (64, 1, 28, 28), Dihedral(4), dihedral),
    ("conv 64 channels, 28x28, D4", lambda: conv(64), (64, 1, 28, 28), Dihedral(4), dihedral),
    ("transformer 16 tokens, S16", transformer, (64, 16, 64), Symmetric(16), Permute(1)),
    ("mlp 64, SO(3)", lambda: mlp(64), (256, 3), SO3(), vectors),
    ("mlp 1024, SO(3)", lambda: mlp(1024), (256, 3), SO3(), vectors),
]
SMOOTH: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], Group, Callable]] = [
    ("mlp 64, SO(2)", lambda: nn.Sequential(nn.Linear(2, 3), mlp(64)), (256, 2), SO2(), vectors),
    ("mlp 1024, SO(3)", lambda: mlp(1024), (256, 3), SO3(), vectors),
    ("conv 16 channels, shifts", lambda: conv(16), (64, 1, 28, 28),
     Translations((2.0, 2.0), whole=False), FourierShift()),
    ("conv 64 channels, shifts", lambda: conv(64), (64, 1, 28, 28),
     Translations((2.0, 2.0), whole=False), FourierShift()),
    ("transformer 16 tokens, shifts", transformer, (64, 16, 64),
     Translations((2.0,), whole=False), FourierShift((1,))),
]  # fmt: skip


def seconds(body: Callable[[], object]) -> float:
    start = time.process_time()
    body()
    return time.process_time() - start


def ratio(forward: Callable[[], object], probe: Callable[[], object], repeats: int) -> float:
    """Median of probe over forward, each pair measured one after the other."""
    for _ in range(3):
        forward(), probe()
    pairs = [(seconds(forward), seconds(probe), seconds(forward)) for _ in range(repeats)]
    return statistics.median(2 * p / (a + b) for a, p, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind, cases in (("finite", CASES), ("lie", SMOOTH)):
        for name, build, shape, group, action in cases:
            torch.manual_seed(0)
            model, x = build().eval(), torch.randn(shape)
            claim = Equivariance(group, action, trivial)

            def forward(model: nn.Module = model, x: Tensor = x) -> Tensor:
                with torch.no_grad():
                    return model(x)

            if kind == "finite":
                run = lambda m=model, x=x, c=claim: equivariance_error(m, x, c, check=False)
                value, unit = ratio(forward, run, arguments.repeats), "forwards for 8 elements"
            else:
                run = lambda m=model, x=x, c=claim: lie_derivative(m, x, c)
                value = ratio(forward, run, arguments.repeats) / len(group.generators())
                unit = "forwards a generator"
            mode = "" if kind == "finite" else lie_derivative(model, x, claim)[0].mode
            rows.append({"case": name, "value": round(value, 2), "unit": unit, "mode": mode})
            print(f"{name:34} {value:6.2f} {unit} {mode}", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"environment": environment(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
