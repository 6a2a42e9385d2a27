"""Claim: a retained top-5 solve peaks below 3.5 gradients plus its stored vectors.

Peak resident memory beyond the built model, each measurement in a process of its own (allocators
reuse memory, so one process cannot tell). The stored vectors, K + 8 Krylov vectors and the few
that a solve works with, are counted apart: they do not depend on the batch.

    python benchmarks/memory.py
"""

import ctypes
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from curvature_models import Problem, problem
from environment import store
from timing import begin
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from eqtoolbox.linalg import finite_difference, hessian, top_eigenpairs

MIB = 2**20
K, CHUNKS, REPEATS = 5, 4, 3
VECTORS = K + 8 + K + 4  # basis, answer, next, product, packed, start
MODES = ("gradient", "retained", "rebuilt", f"in {CHUNKS} chunks", "differenced")


def work(p: Problem, mode: str) -> None:
    """One gradient, or a top-5 solve in some mode."""
    if mode == "gradient":
        p.gradient()
    elif mode == "differenced":
        top_eigenpairs(finite_difference(p.loss, p.params()), K, max_matvecs=20, confirm=0)
    elif mode in ("retained", "rebuilt"):
        H = hessian(p.loss, p.params(), retain=mode == "retained")
        top_eigenpairs(H, K, max_matvecs=20, confirm=0)
    else:
        pairs = list(zip(*(x.chunk(CHUNKS) for x in p.batch), strict=True))
        losses = [
            lambda q, x=x, y=y: p.criterion(functional_call(p.model, q, x), y) for x, y in pairs
        ]
        H = hessian(losses, p.params(), weights=[len(x) for x, _ in pairs])
        top_eigenpairs(H, K, max_matvecs=20, confirm=0)


def growth(name: str, mode: str) -> float:
    """MiB by which the peak grows in this process."""
    begin()
    p = problem(name, steps=0)
    with sdpa_kernel(SDPBackend.MATH):
        warm = torch.randn(8, 8, requires_grad=True)  # the autograd engine's own threads and pools
        torch.autograd.grad((warm @ warm).sum(), warm)
        before = _forget_peak()
        work(p, mode)
        return (_peak() - before) / 1024


def _forget_peak() -> int:
    """Give freed memory back and lower the recorded peak to the present; returns it in KiB."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """Peak resident memory in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def measured(name: str, mode: str) -> tuple[float, str]:
    """Median growth over fresh processes, or NaN and why it could not be done."""
    values = []
    for _ in range(REPEATS):
        command = [sys.executable, __file__, name, mode]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return float("nan"), done.stderr.strip().splitlines()[-1]
        values.append(json.loads(done.stdout))
    return statistics.median(values), ""


def main() -> None:
    machine, results = begin(), {}
    for name in ("mlp", "resnet", "gpt"):
        vectors = VECTORS * problem(name, steps=0).size * 4 / MIB
        row: dict[str, Any] = {"vectors_mib": vectors}
        for mode in MODES:
            if "chunks" in mode and name == "resnet":
                why = "BatchNorm: the loss of a batch is not the mean of its chunks'"
                peak = float("nan")
            else:
                peak, why = measured(name, mode)
            unit = peak if mode == "gradient" else row["gradient"]["mib"]
            beyond = peak if mode == "gradient" else max(peak - vectors, 0.0)
            row[mode] = {"mib": peak, "gradients_beyond_vectors": beyond / unit, "why": why}
            number = f"{peak:7.0f} MiB, {beyond / unit:5.2f} gradients"
            print(f"{name:8s} {mode:12s}", why if why else number, flush=True)
        print(f"{name:8s} {'vectors':12s} {vectors:7.0f} MiB, not counted in the line above")
        results[name] = row
    print(store("memory", {"machine": machine, "vectors": VECTORS, "problems": results}))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(growth(sys.argv[1], sys.argv[2])))
    else:
        main()
