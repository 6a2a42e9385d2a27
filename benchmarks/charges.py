"""Cost of charges, budgets and first-order laws at every step, on the ResNet and the 4-layer GPT.

Two copies of each problem train in turn, step by step, one with the conservation probe due at
every step and a run directory, one without. An ordinary step records drifts and laws and adds up
budgets; a kept step also records budgets and vectors (1 % of the steps in the long run). Costs are
medians over rounds of the difference in processor time of the training thread.

    python benchmarks/charges.py [repeats]
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from curvature_models import Problem, problem
from environment import store
from timing import begin

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation

SETTLED = 10  # rounds left out
GROWTH = 0.01  # share of the steps that are kept, with the probe's default


def stepper(made: Problem, run_dir: Path | None, probe: Conservation) -> Callable[[], float]:
    """A function that trains one step and returns its seconds."""
    optimizer = torch.optim.SGD(made.model.parameters(), lr=made.lr, weight_decay=1e-4)
    loss = made.loss_at
    if run_dir is not None:
        loss = eq.attach(
            made.model, optimizer, probes=[probe], schedule=1, budget=None, run_dir=run_dir
        ).loss(loss)

    def step() -> float:
        batch = next(made.stream)
        start = time.thread_time()
        optimizer.zero_grad()
        loss(made.model, batch).backward()
        optimizer.step()
        return time.thread_time() - start

    return step


def measured(name: str, repeats: int) -> dict[str, float]:
    """Seconds of a step without, and what ordinary and kept steps add to it."""
    row = {}
    for kind, growth in (("ordinary", 1e9), ("kept", 0.0)):
        probe = Conservation(growth=growth)
        with tempfile.TemporaryDirectory() as folder:
            plain = stepper(problem(name, steps=0), None, probe)
            watched = stepper(problem(name, steps=0), Path(folder) / "run", probe)
            rounds = []
            for i in range(SETTLED + repeats):
                first, second = (plain, watched) if i % 2 else (watched, plain)
                times = {first: first(), second: second()}
                rounds.append((times[plain], times[watched] - times[plain]))
            run = eq.Run(Path(folder) / "run")
            names = [n for n in run.arrays() if n.startswith("conservation/charge/")]
            row["charges"] = float(sum(run.array(n)[1].shape[1] for n in names))
        row["step"] = statistics.median(a for a, _ in rounds[SETTLED:])
        row[kind] = statistics.median(b for _, b in rounds[SETTLED:])
    row["share"] = (row["ordinary"] + GROWTH * row["kept"]) / row["step"]
    return row


def main() -> None:
    state = begin()
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    results = {name: measured(name, repeats) for name in ("resnet", "gpt")}
    for name, row in results.items():
        step, ordinary, kept = (row[k] * 1e3 for k in ("step", "ordinary", "kept"))
        print(f"{name:8s} step {step:.1f} ms + {ordinary:.2f} ms, a kept one + {kept:.2f} ms")
        print(f"         {row['share']:.1%} in the long run; {row['charges']:.0f} charges")
    print(store("charges", {"machine": state, "repeats": repeats, "models": results}))


if __name__ == "__main__":
    main()
