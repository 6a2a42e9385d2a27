"""What a step costs that measures nothing, and what `import eqtoolbox` adds to torch's import.

Claim: attached with the `standard` preset, a step that is not due takes at most 20 microseconds
more, and the import at most 0.15 s. The training of the benchmark is one linear layer, the
cheapest there is; with and without are interleaved in blocks, and the median of the blocks counts,
in processor time, which a busy machine disturbs least.

    python benchmarks/idle_step.py
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from environment import store
from torch import nn

import eqtoolbox as eq

BLOCK, BLOCKS = 300, 40
IMPORTS = 9


def trainer(attached: bool, surface: str) -> Callable[[], None]:
    """One training step of a linear layer; the monitor's first due step is far away."""
    torch.manual_seed(0)
    model, criterion = nn.Linear(4, 2), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = (torch.randn(8, 4), torch.randn(8, 2))

    def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        loss: torch.Tensor = criterion(model(batch[0]), batch[1])
        return loss

    if attached:
        never = eq.at([10**9])
        if surface == "decorator":
            monitor = eq.attach(model, optimizer, schedule=never)
            loss_fn = monitor.loss(loss_fn)
        else:
            monitor = eq.attach(model, optimizer, schedule=never, criterion=criterion)

    def step() -> None:
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()

    return step


def microseconds(surface: str) -> tuple[float, float]:
    """Median time of a step without, and the median over blocks of what the monitor adds."""
    steps = {attached: trainer(attached, surface) for attached in (False, True)}
    times: dict[bool, list[float]] = {False: [], True: []}
    for block in range(BLOCKS):
        for attached in (False, True) if block % 2 else (True, False):
            start = time.process_time()
            for _ in range(BLOCK):
                steps[attached]()
            times[attached].append((time.process_time() - start) / BLOCK * 1e6)
    added = [b - a for a, b in zip(times[False], times[True], strict=True)]
    return statistics.median(times[False]), statistics.median(added)


def import_seconds() -> float:
    """Median time of `import eqtoolbox` behind `import torch, numpy`, in new processes."""
    code = (
        "import torch, numpy, time; t = time.process_time(); import eqtoolbox;"
        "print(time.process_time() - t)"
    )
    with tempfile.TemporaryDirectory() as compiled:  # as installed: the first run fills it
        own = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        runs = [
            subprocess.run(
                [sys.executable, "-c", code],
                env={**own, "PYTHONPYCACHEPREFIX": compiled},
                capture_output=True,
                text=True,
                check=True,
            )
            for _ in range(IMPORTS + 1)
        ]
    return statistics.median(float(run.stdout) for run in runs[1:])


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, float] = {"import_seconds": import_seconds()}
    for surface in ("decorator", "criterion"):
        step, added = microseconds(surface)
        results |= {f"step_{surface}": step, f"added_{surface}": added}
        print(f"{surface}: a step of {step:.0f} us, attached and not due +{added:.1f} us")
    print(f"import eqtoolbox: {results['import_seconds']:.3f} s beyond torch's own")
    print(store("idle_step", results))


if __name__ == "__main__":
    main()
