"""What the product does on a GPU: stage by stage, in one call of at most eight minutes.

Every stage runs in a process of its own with a limit, so that a late one costs nothing else; what
it found so far is kept, and results are written as they come. Times are ratios to the training
step or the gradient of the same model, memory is what `max_memory_allocated` says.

    CUBLAS_WORKSPACE_CONFIG=:4096:8 python benchmarks/gpu.py            # all stages
    python benchmarks/gpu.py product charges                            # some
    python benchmarks/gpu.py --device cpu --tiny --out /tmp exact       # how a test runs it
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from environment import RESULTS, environment

LIMITS = {  # stage: seconds
    "exact": 60,
    "neutral": 120,
    "equivariance": 40,
    "product": 70,
    "charges": 60,
    "defaults": 120,
    "memory": 60,
}
WHOLE = 470.0  # seconds of all stages together
STARTS = 15.0  # that a process needs before it measures
MARK = "@@"  # before what a stage found


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", choices=[[], *LIMITS], default=[])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", choices=LIMITS, help=argparse.SUPPRESS)
    asked = parser.parse_args(given)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if asked.child:
        return child(asked.child, asked.device, asked.tiny)
    return parent(asked.stages or list(LIMITS), asked.device, asked.tiny, asked.out)


def child(stage: str, device: str, tiny: bool) -> int:
    """Run one stage; every finding is printed as soon as it is there."""
    from gpu_stages import STAGES  # only what a stage itself needs may fail it

    for name, found in STAGES[stage](device, tiny):
        print(MARK + json.dumps({name: found}), flush=True)
    return 0


def parent(stages: list[str], device: str, tiny: bool, out: Path) -> int:
    """Run stages one after the other; returns how many did not end well."""
    started, results = time.monotonic(), dict[str, Any]()
    for stage in stages:
        left = WHOLE - (time.monotonic() - started)
        if left < STARTS:
            results[stage] = {"error": "no time left"}
        else:
            command = [sys.executable, __file__, "--child", stage, "--device", device]
            results[stage] = run(command + ["--tiny"] * tiny, min(LIMITS[stage], left))
        print(stage, json.dumps(results[stage])[:2000], flush=True)
        write(results, out / ("gpu.json" if device == "cuda" else f"gpu_{device}.json"))
    return sum("error" in found for found in results.values())


def run(command: list[str], limit: float) -> dict[str, Any]:
    """What a stage printed within its limit, with what went wrong if anything did."""
    began, error = time.monotonic(), ""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )
    try:
        said, errors = process.communicate(timeout=limit)
        if process.returncode:
            error = errors.strip()[-1500:] or f"ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        error = f"stopped after {limit:.0f} s"
    found: dict[str, Any] = {}
    for line in said.splitlines():
        if line.startswith(MARK):
            found |= json.loads(line.removeprefix(MARK))
    found["seconds"] = round(time.monotonic() - began, 1)
    return found | ({"error": error} if error else {})


def write(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(), "results": results}
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
