"""Claim: with default settings memory peaks below 1.25 times that of training alone.

Peak resident memory of whole runs, each in a process of its own: a GPT of 17 million parameters on
8 rows of 128 tokens, which saves six times as many bytes as it has parameters, and a ResNet-18 of
11 million on 128 pictures, in float32 with AdamW. The
budget is lifted, so that every probe runs at every third step; what a governed probe measured
instead of the whole batch stands beside the peak, by probe.

    python benchmarks/peaks.py [steps]
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from environment import store
from gpu_models import Gpt, Task, pictures

import eqtoolbox as eq
from eqtoolbox.sinks.memory import MemorySink

MIB = 2**20
STEPS, EVERY = 7, 3


def gpt() -> Task:
    """Eight blocks of width 256, 20,000 words."""
    torch.manual_seed(0)
    drawn = [torch.randint(20000, (8, 129)) for _ in range(4)]
    batches = [(x[:, :-1], x[:, 1:]) for x in drawn]
    return Task("gpt", Gpt(20000, 256, 8, 8, 128), batches, None)


def resnet() -> Task:
    """Half as many pictures as on a GPU."""
    task = pictures("cpu", tiny=False, autocast=None)
    batches = [(x[:128], y[:128]) for x, y in task.batches]
    return Task(task.name, task.model, batches, None)


NETWORKS = {"gpt": gpt, "resnet": resnet}


def peak() -> float:
    """Peak resident memory of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def run(name: str, watched: bool, steps: int) -> dict[str, Any]:
    """Train for some steps; what it took, and what was measured."""
    task = NETWORKS[name]()
    optimizer, sink = task.optimizer(), MemorySink()
    start = peak()
    with tempfile.TemporaryDirectory() as folder:
        loss, monitor = task.loss, None
        if watched:
            options = {"budget": None, "schedule": EVERY, "run_dir": f"{folder}/run"}
            monitor = eq.attach(task.model, optimizer, sinks=[sink], **options)  # type: ignore[arg-type]
            loss = monitor.loss(task.loss)
        for step in range(steps):
            optimizer.zero_grad()
            loss(task.model, task.batches[step % len(task.batches)]).backward()
            optimizer.step()
        if monitor is not None:
            monitor.close()
    found: dict[str, Counter[str]] = {}
    for row in sink.records:
        probe = row.name.partition("/")[0]
        if probe in ("curvature", "noether", "discrete", "conservation"):
            samples = row.facts.count("samples_used")
            said = row.status if row.status != "ok" else f"ok on {samples or 'all'} samples"
            found.setdefault(probe, Counter())[said] += 1
    return {
        "model_mib": start,
        "peak_mib": peak(),
        "records": {p: dict(c) for p, c in found.items()},
    }


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        torch.set_num_threads(1)
        name, watched, steps = sys.argv[2], sys.argv[3] == "watched", int(sys.argv[4])
        print(json.dumps(run(name, watched, steps)))
        return
    steps, results = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS, {}
    for name in NETWORKS:
        rows = {}
        for way in ("alone", "watched"):
            command = [sys.executable, __file__, "run", name, way, str(steps)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows[way] = json.loads(done.stdout.splitlines()[-1])
            print(name, way, rows[way], flush=True)
        rows["ratio"] = rows["watched"]["peak_mib"] / rows["alone"]["peak_mib"]
        results[name] = rows
        print(name, f"{rows['ratio']:.3f}", flush=True)
    print(store("peaks", {"steps": steps, **results}))


if __name__ == "__main__":
    main()
