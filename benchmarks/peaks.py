"""Claim: with default settings memory peaks below 1.25 times that of training alone.

Peak resident memory of whole runs, each in a process of its own: a GPT of 17 million parameters on
8 rows of 128 tokens, which saves six times as many bytes as it has parameters, a ResNet-18 of 11
million on 128 pictures, and a GPT of 162 million on 4 rows of 512, in float32 with AdamW. The
budget is lifted, so that every probe runs at every third step; what a governed probe measured
instead of the whole batch stands beside the peak, by probe. The resident peak has what the C
library keeps of what was freed, and libraries that are loaded; `tensors` is that of the tensors
alone, as torch's allocator counts them.

    python benchmarks/peaks.py [network ...]
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from environment import store
from gpu_models import Gpt, Task, pictures
from torch.profiler import profile

import eqtoolbox as eq
from eqtoolbox.sinks.memory import MemorySink

MIB = 2**20
STEPS, EVERY = {"gpt": 7, "resnet": 7, "large": 4}, 3


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


def large() -> Task:
    """Twelve blocks of width 768, 50,257 words and a head of its own."""
    torch.manual_seed(0)
    drawn = [torch.randint(50257, (4, 513)) for _ in range(2)]
    batches = [(x[:, :-1], x[:, 1:]) for x in drawn]
    return Task("large", Gpt(50257, 768, 12, 12, 512), batches, None)


NETWORKS = {"gpt": gpt, "resnet": resnet, "large": large}


def peak() -> float:
    """Peak resident memory of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def of_tensors(prof: Any) -> float:
    """Largest sum of what torch's allocator had given at once, in MiB."""
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return max(accumulate(e.nbytes() for e in events), default=0) / MIB


def run(name: str, watched: bool, counted: bool) -> dict[str, Any]:
    """Train for some steps; what it took, and what was measured."""
    task = NETWORKS[name]()
    own = sum(p.numel() * p.element_size() for p in task.model.parameters()) / MIB
    with profile(profile_memory=True) if counted else nullcontext() as prof:
        found = trained(task, watched, STEPS[name])
    return found | ({"tensors_mib": own + of_tensors(prof)} if counted else {})


def trained(task: Task, watched: bool, steps: int) -> dict[str, Any]:
    """The same; resident memory."""
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
        print(json.dumps(run(sys.argv[2], sys.argv[3] == "watched", sys.argv[4] == "counted")))
        return
    results: dict[str, Any] = {"steps": STEPS}
    for name in sys.argv[1:] or NETWORKS:
        rows: dict[str, Any] = {}
        for way in ("alone", "watched"):
            rows[way] = {}
            for counted in ("resident", "counted"):
                command = [sys.executable, __file__, "run", name, way, counted]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                rows[way] = json.loads(done.stdout.splitlines()[-1]) | rows[way]
            print(name, way, rows[way], flush=True)
        for kind in ("peak", "tensors"):
            rows[f"ratio_of_{kind}"] = rows["watched"][f"{kind}_mib"] / rows["alone"][f"{kind}_mib"]
        results[name] = rows
        print(name, {k: round(v, 3) for k, v in rows.items() if "ratio" in k}, flush=True)
    if not sys.argv[1:]:
        print(store("peaks", results))


if __name__ == "__main__":
    main()
