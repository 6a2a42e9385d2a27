"""What data-symmetry probes cost, in forwards without gradient of the same model and batch.

Three lines a model: 8 group elements (the identity among them) with their actions checked before,
Lie derivatives per generator, and the whole probe inside a monitored run, loss evaluation and
records included. Rows that pass through the model are counted in the tests; these are times.

    OMP_NUM_THREADS=1 python benchmarks/equivariance_cost.py
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from environment import store
from timing import begin, interleaved, timed
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry import SO2, SO3, Dihedral, Equivariance, Symmetric, Translations
from eqtoolbox.symmetry.actions.action import Action, dihedral, trivial
from eqtoolbox.symmetry.actions.linear import vectors
from eqtoolbox.symmetry.actions.permuting import Permute
from eqtoolbox.symmetry.actions.resampling import FourierShift
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.group import Group
from eqtoolbox.symmetry.lie import lie_derivative

REPEATS = 30


class Mean(nn.Module):
    """Mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def conv(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, dropout=0.0)
    return nn.Sequential(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), Mean())


def mlp(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
        nn.Linear(width, 4),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model, its batch, and a claim of each kind."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    finite: tuple[Group, Action]
    smooth: tuple[Group, Action]

    def claim(self, kind: str) -> Equivariance:
        group, action = self.finite if kind == "finite" else self.smooth
        return Equivariance(group, action, trivial)


SHIFTS = (Translations((2.0, 2.0), whole=False), FourierShift())
CASES = (
    Case("conv, 16 channels", lambda: conv(16), (64, 1, 29, 29), (Dihedral(4), dihedral), SHIFTS),
    Case("conv, 64 channels", lambda: conv(64), (64, 1, 29, 29), (Dihedral(4), dihedral), SHIFTS),
    Case("transformer, 32 tokens", transformer, (32, 32, 128), (Symmetric(32), Permute(1)),
         (Translations((2.0,), whole=False), FourierShift((1,)))),
    Case("mlp, width 1024, SO(2)", lambda: mlp(2, 1024), (256, 2), (SO2(), vectors),
         (SO2(), vectors)),
    Case("mlp, width 1024, SO(3)", lambda: mlp(3, 1024), (256, 3), (SO3(), vectors),
         (SO3(), vectors)),
    Case("mlp, width 64, SO(3)", lambda: mlp(3, 64), (256, 3), (SO3(), vectors),
         (SO3(), vectors)),
)  # fmt: skip


def functions(case: Case) -> dict[str, Any]:
    """Ratios of the two functions to a forward, in turn."""
    torch.manual_seed(0)
    model, x = case.build().eval().requires_grad_(False), torch.randn(case.shape)
    finite, smooth = case.claim("finite"), case.claim("smooth")
    cases = {
        "forward": lambda: model(x),
        "finite": lambda: equivariance_error(model, x, finite, check=False),
        "lie": lambda: lie_derivative(model, x, smooth),
    }
    times = interleaved(cases, repeats=REPEATS)
    count = len(smooth.group.generators())
    return {
        "forward_ms": 1e3 * times.seconds("forward"),
        "eight_elements": times.ratio("finite", "forward"),
        "lie_per_generator": times.ratio("lie", "forward") / count,
        "mode": lie_derivative(model, x, smooth)[0].mode,
    }


def monitored(case: Case) -> float:
    """Median of the probe's own seconds over those of a forward just before it."""
    torch.manual_seed(0)
    model, x = case.build(), torch.randn(case.shape)
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=1e-3), MemorySink()
    probe = EquivarianceError(symmetries=(case.claim("finite"),))
    forwards = []
    with eq.attach(model, optimizer, probes=[probe], budget=None, sinks=(sink,)) as monitor:
        loss_fn = monitor.loss(lambda m, b: m(b).square().mean())
        for _ in range(REPEATS):
            with torch.no_grad():
                model(x)  # warm caches after the optimizer step
                forwards.append(timed(lambda: model(x))[0])
            loss_fn(model, x).backward()
            optimizer.step()
            optimizer.zero_grad()
    spent = [r.value for r in sink.records if r.name == "cost/seconds/equivariance"]
    pairs = list(zip(spent, forwards, strict=True))[3:]
    return statistics.median(a / b for a, b in pairs)


def main() -> None:
    machine, results = begin(), {}
    for case in CASES:
        found = functions(case)
        smooth = bool(case.finite[0].generators())
        found["probe"] = None if smooth else monitored(case)  # else with Lie derivatives
        results[case.name] = found
        probe = "" if found["probe"] is None else f", in a run {found['probe']:.1f}"
        print(
            f"{case.name:24} forward {found['forward_ms']:7.2f} ms, 8 elements "
            f"{found['eight_elements']:5.2f}{probe}, a generator "
            f"{found['lie_per_generator']:5.2f} ({found['mode']})",
            flush=True,
        )
    print(store("equivariance_cost", {"machine": machine, "forwards": results}))


if __name__ == "__main__":
    main()
