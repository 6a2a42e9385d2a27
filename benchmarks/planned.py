"""Claim: `eqtoolbox plan` is within 1.5 times of memory and work, row by row, in one process.

A GPT of 2.5 million parameters, an MLP of 4 million and a ResNet-18 of 2.8 million in float32 with
AdamW. Memory is the peak resident size during a measurement over that before it, with the copy
theta_t and without what a run does once (the search for symmetries, the engine's self-test), each
in a process of its own where the allocator gives all memory back. Work is counted in floating
point operations, over those of a training step. Processor time is shown, not planned: the vectors
of small networks cost as much as their products.

    python benchmarks/planned.py [gpt mlp resnet]
    python benchmarks/planned.py again    # what was measured, beside the plan as it is now
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from environment import RESULTS, store
from gpu_models import Gpt, resnet
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import eqtoolbox as eq
from eqtoolbox.command.plan.network import Network
from eqtoolbox.command.plan.setting import Training
from eqtoolbox.command.plan.taken import CHARGES, ROWS, measurements
from eqtoolbox.linalg import finite_difference, hessian
from eqtoolbox.linalg.vectors import random_like
from eqtoolbox.probes import Conservation, Curvature, Discrete, EquivarianceError, Noether, Spectrum
from eqtoolbox.probes.engine import Engine
from eqtoolbox.probes.symmetries import FoundSymmetries
from eqtoolbox.probes.tracking import Tracking
from eqtoolbox.record.record import Mode
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.snapshot import Snapshot

OFF = 1.5
NETWORKS = ("gpt", "mlp", "resnet")
ONLY = {"equivariance": ("resnet",), "one product, differenced": ("gpt",)}  # pictures; no kinks
HEAD = 48  # width of a head of the GPT
PROBES: dict[str, Callable[[], Probe]] = {
    "conservation, every step": Conservation,
    "equivariance": EquivarianceError,
    "discrete": lambda: Discrete(pairs=0, laws=False),
    "tracking, exact": lambda: Tracking(rows=ROWS),
    "noether": Noether,
    "top 3 (Lanczos)": lambda: Curvature(k=3),
    "spectrum": lambda: Spectrum(matvecs=6, probes=2),
}
OPERATORS = {"one product, exact": hessian, "one product, differenced": finite_difference}
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True, kw_only=True)
class Keeper(Probe):
    """Keeps the snapshot of a step."""

    name: ClassVar[str] = "keeper"
    headline: ClassVar[str] = "kept"
    mode: ClassVar[Mode] = "train"
    kept: ClassVar[list[Snapshot]] = []

    def measure(
        self, snapshot: Snapshot, reference: None, rng: torch.Generator
    ) -> Iterator[Measurement]:
        self.kept[:] = [snapshot]
        yield Measurement("kept", 1.0)


def network(name: str) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """A network and a batch."""
    torch.manual_seed(0)
    if name == "gpt":
        drawn = torch.randint(2000, (4, 65))
        return Gpt(2000, 192, 4, 4, 64), (drawn[:, :-1], drawn[:, 1:])
    if name == "mlp":
        sizes = (784, 1024, 1024, 1024, 1024)
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.Tanh())]
        batch = torch.randn(64, 784), torch.randint(10, (64,))
        return nn.Sequential(*layers, nn.Linear(1024, 10)), batch
    return resnet(32), (torch.randn(8, 3, 16, 16), torch.randint(10, (8,)))


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.cross_entropy(model(batch[0]), batch[1])


def measured(name: str, row: str) -> dict[str, Any]:
    """Bytes, work in steps, and processor time in steps of one row."""
    torch.set_num_threads(1)
    model, batch = network(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()

    for _ in range(2):
        step()
    with FlopCounterMode(display=False) as whole:
        step()
    seconds = min(_seconds(step) for _ in range(3))
    own = sum(4 * p.numel() for p in model.parameters())
    if row == "a training step":
        return {"bytes": _growth(step) + 4 * own, "steps": 1.0, "seconds": 1.0}
    monitor = eq.attach(model, optimizer, probes=[Keeper()], schedule=1, budget=None, memory=None)
    watched = monitor.loss(loss_of)
    for _ in range(2):
        optimizer.zero_grad()
        watched(model, batch).backward()
        optimizer.step()
    snapshot = Keeper.kept[0]
    rng = torch.Generator().manual_seed(0)
    if row in PROBES:
        probe = PROBES[row]()
        prepare(probe, snapshot)
        reference = probe.reference(snapshot, rng)

        def work() -> Any:
            return list(probe.measure(replace(snapshot, slopes=[]), reference, rng))

    else:

        def work() -> Any:
            v = random_like(snapshot.before, rng)
            with snapshot.objective.isolated():
                return OPERATORS[row](snapshot.objective, snapshot.before)(v)

    bytes_ = _growth(work) if row.startswith("tracking") else 0  # its first update is deep
    if row == "noether":  # whose first measurement also finds floors
        work()
    with FlopCounterMode(display=False) as counted:
        start = time.process_time()
        bytes_ = max(bytes_, _growth(work))
        spent = time.process_time() - start
    return {
        "bytes": bytes_ + own,  # and theta_t
        "steps": counted.get_total_flops() / whole.get_total_flops(),
        "seconds": spent / seconds,
    }


def prepare(probe: Probe, snapshot: Snapshot) -> None:
    """What the first measurement alone takes: the search for symmetries, the engine's test."""
    FoundSymmetries.of(snapshot)
    engine = getattr(probe, "engine", None)
    if isinstance(engine, Engine):
        engine.test(snapshot)


def _seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _growth(work: Callable[[], Any]) -> int:
    """Bytes by which the resident size grows at most."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    work()
    return _peak() - before


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def planned(name: str) -> dict[str, dict[str, float]]:
    """What the plan says of each row; of a shorter spectrum, and of heads of this width."""
    model, batch = network(name)
    training = Training(network=Network.of(model, batch, loss_of), precision="fp32")
    rows = {"a training step": {"bytes": training.peak, "steps": 1.0}}
    short = PROBES["spectrum"]()
    assert isinstance(short, Spectrum)
    products = short.matvecs + short.probes * short.steps
    for row in measurements():
        if row.name == "spectrum":
            row = replace(row, products=float(products))
        if row.name.startswith("conservation"):
            row = replace(row, operations=CHARGES * HEAD if name == "gpt" else 0.0)
        rows[row.name] = {"bytes": row.bytes(training), "steps": row.work(training)}
    return rows


def main() -> None:
    if sys.argv[1:2] == ["row"]:
        print(json.dumps(measured(*sys.argv[2:4])))
        return
    if sys.argv[1:2] == ["again"]:
        again()
        return
    for name in sys.argv[1:] or NETWORKS:
        for row, plan in planned(name).items():
            known = row in ("a training step", *PROBES, *OPERATORS)
            if known and name in ONLY.get(row, NETWORKS):
                keep(name, row, compared(name, row, plan))


def compared(name: str, row: str, plan: dict[str, float]) -> dict[str, Any]:
    """The plan of a row, beside what was measured in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "row", name, row]
    environment = {**os.environ, **EXACT_MEMORY}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        print(name, row, "failed", flush=True)
        return {"planned": plan, "failed": True}
    return beside(name, row, plan, json.loads(done.stdout.splitlines()[-1]))


def beside(name: str, row: str, plan: dict[str, float], found: dict[str, float]) -> dict[str, Any]:
    """Plan, measurement, and the one over the other."""
    memory = plan["bytes"] / max(found["bytes"], 1)
    work = plan["steps"] / found["steps"] if found["steps"] and plan["steps"] else None
    print(
        f"{name:7} {row:26} MiB {plan['bytes'] / 2**20:.0f} / {found['bytes'] / 2**20:.0f} = "
        f"{memory:.2f}, work {plan['steps']:.3g} / {found['steps']:.3g}, "
        f"time {found['seconds']:.3g} steps",
        flush=True,
    )
    return {"planned": plan, "measured": found, "memory_ratio": memory, "work_ratio": work}


def again() -> None:
    """The plan anew beside every row that is stored."""
    results = json.loads((RESULTS / "planned.json").read_text())["results"]
    for name in NETWORKS:
        plans = planned(name) if name in results else {}
        for row, found in results.get(name, {}).items():
            keep(name, row, beside(name, row, plans[row], found["measured"]))


def keep(name: str, row: str, found: dict[str, Any]) -> None:
    """Add a row to the results; the others stay."""
    path = RESULTS / "planned.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {"off": OFF}
    results.setdefault(name, {})[row] = found
    store("planned", results)


if __name__ == "__main__":
    main()
