"""Cost of charges, budgets and first-order laws at every step: a ResNet, a GPT, one of 25 M.

Two copies of each problem train in turn, step by step, one with the conservation probe due at
every step and a run directory, one without. An ordinary step records drifts and laws and adds up
budgets; a kept step also records budgets and vectors (1 % of the steps in the long run). Costs are
medians over rounds of the difference in processor time of the training thread. What is added
for each parameter from the small to the large GPT is `marginal`: the rest does not grow with it.

What is held is counted in a process of its own, on a GPT of width 256: bytes of all tensors that
are alive between two steps, with the monitor and without, in models (4 bytes a parameter).

    python benchmarks/charges.py [repeats]
"""

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from curvature_models import GPT, Problem, problem
from environment import store
from timing import begin

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation

SETTLED = 5  # rounds left out
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


def wide(width: int, layers: int) -> Problem:
    """The problem of the small GPT, of another size."""
    small = problem("gpt-small", steps=0)
    torch.manual_seed(0)
    return replace(small, name="wide", model=GPT(width, layers, 4, 64))


def made(name: str) -> Problem:
    """A problem by its name."""
    return wide(512, 8) if name == "gpt-large" else problem(name, steps=0)


def measured(name: str, repeats: int) -> dict[str, float]:
    """Seconds of a step without, and what ordinary and kept steps add to it."""
    row = {}
    for kind, growth in (("ordinary", 1e9), ("kept", 0.0)):
        probe = Conservation(growth=growth)
        with tempfile.TemporaryDirectory() as folder:
            plain = stepper(made(name), None, probe)
            watched = stepper(made(name), Path(folder) / "run", probe)
            rounds = []
            for i in range(SETTLED + repeats):
                first, second = (plain, watched) if i % 2 else (watched, plain)
                times = {first: first(), second: second()}
                rounds.append((times[plain], times[watched] - times[plain]))
            run = eq.Run(Path(folder) / "run")
            names = [n for n in run.arrays() if n.startswith("conservation/charge/")]
            row["charges"] = float(sum(run.array(n)[1].shape[1] for n in names))
        row["parameters"] = float(made(name).size)
        row["step"] = statistics.median(a for a, _ in rounds[SETTLED:])
        row[kind] = statistics.median(b for _, b in rounds[SETTLED:])
    row["nanoseconds"] = row["ordinary"] / row["parameters"] * 1e9
    row["share"] = (row["ordinary"] + GROWTH * row["kept"]) / row["step"]
    return row


def alive() -> int:
    """Bytes of all tensors there are."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())


def held() -> dict[str, float]:
    """What is held between two steps, in models."""
    begin()
    p, found = wide(256, 4), {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("plain", "watched"):
            run = Path(folder) / "run" if kind == "watched" else None
            step = stepper(p, run, Conservation(growth=1e9))
            for _ in range(4):
                step()
            found[kind] = alive()
    models = (found["watched"] - found["plain"]) / (4 * p.size)
    return {"parameters": float(p.size), "held": models}


def main() -> None:
    state = begin()
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    results = {name: measured(name, repeats) for name in ("resnet", "gpt", "gpt-large")}
    grown = [results["gpt-large"][k] - results["gpt"][k] for k in ("ordinary", "parameters")]
    marginal = grown[0] / grown[1] * 1e9
    for name, row in results.items():
        step, ordinary, kept = (row[k] * 1e3 for k in ("step", "ordinary", "kept"))
        print(f"{name:8s} step {step:.1f} ms + {ordinary:.2f} ms, a kept one + {kept:.2f} ms")
        print(f"         {row['share']:.1%} in the long run; {row['charges']:.0f} charges")
        print(f"         {row['nanoseconds']:.1f} ns a parameter and ordinary step")
    print(f"{marginal:.1f} ns for each further parameter, from the small to the large GPT")
    done = subprocess.run(
        [sys.executable, __file__, "held"], capture_output=True, text=True, check=True
    )
    memory = json.loads(done.stdout.splitlines()[-1])
    print(f"{memory['held']:.2f} models held between steps")
    told = {"machine": state, "repeats": repeats, "models": results, "marginal": marginal}
    told["memory"] = memory
    print(store("charges", told))


if __name__ == "__main__":
    if sys.argv[1:] == ["held"]:
        print(json.dumps(held()))
    else:
        main()
