"""Cost of charges, budgets and first-order laws at every step, on the ResNet and the 4-layer GPT.

Claim: <= 2 % of a training step. Two copies of each problem train in turn, step by step, one with
the conservation probe due at every step and a run directory, one without; the cost is the median
over rounds of the difference, after the first 120 steps (which keep every vector).

    python benchmarks/charges.py [repeats]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from curvature_models import Problem, problem
from environment import store
from timing import begin

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation

SETTLED = 120  # steps that record everything


def stepper(made: Problem, run_dir: Path | None) -> tuple[object, object]:
    """A function that trains one step, and the monitor to close."""
    optimizer = torch.optim.SGD(made.model.parameters(), lr=made.lr, weight_decay=1e-4)
    loss, monitor = made.loss_at, None
    if run_dir is not None:
        monitor = eq.attach(
            made.model, optimizer, probes=[Conservation()], schedule=1, budget=None, run_dir=run_dir
        )
        loss = monitor.loss(loss)

    def step() -> float:
        batch = next(made.stream)
        start = time.perf_counter()
        optimizer.zero_grad()
        loss(made.model, batch).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step, monitor


def measured(name: str, repeats: int) -> dict[str, float]:
    """Seconds of a step without, what the monitor adds, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        plain, _ = stepper(problem(name, steps=0), None)
        watched, monitor = stepper(problem(name, steps=0), Path(folder) / "run")
        start = time.perf_counter()
        watched()
        setup = time.perf_counter() - start
        plain()
        rounds = []
        for i in range(SETTLED + repeats):
            pair = (plain(), watched()) if i % 2 else (watched(), plain())[::-1]
            if i >= SETTLED:
                rounds.append(pair)
        monitor.close()
        run = eq.Run(Path(folder) / "run")
        probe = run.series("cost/seconds/conservation")[1][SETTLED:]
        size = sum(f.stat().st_size for f in (Path(folder) / "run").iterdir())
    base = statistics.median(a for a, _ in rounds)
    return {
        "step_seconds": base,
        "added_seconds": statistics.median(b - a for a, b in rounds),
        "share": statistics.median(b - a for a, b in rounds) / base,
        "probe_seconds": statistics.median(probe.tolist()),
        "setup_seconds": setup,
        "charges": float(sum(len(run.array(n)[1][0]) for n in run.arrays() if "/charge/" in n)),
        "bytes": float(size),
    }


def main() -> None:
    state = begin()
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    results = {name: measured(name, repeats) for name in ("resnet", "gpt")}
    for name, row in results.items():
        step, added = row["step_seconds"] * 1e3, row["added_seconds"] * 1e3
        print(f"{name:8s} step {step:.1f} ms, added {added:.2f} ms = {row['share']:.2%}")
        print(f"         {row['charges']:.0f} charges; {row['bytes'] / 1e6:.1f} MB of records")
    print(store("charges", {"machine": state, "repeats": repeats, "models": results}))


if __name__ == "__main__":
    main()
