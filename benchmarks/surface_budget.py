"""Whether `standard` stays within its budget of 5 % on every surface, set-up apart.

Claim: behind the first runs of its probes, which are free by design, a watched training takes at
most 5 % more processor time than an unwatched one, hooks of idle steps and writing included. Whole
runs with and without alternate. Of several runs the shortest are compared, which a busy machine
disturbed least; the median of the ratios within pairs stands beside it.

    python benchmarks/surface_budget.py [SURFACE ...]
"""

import gc
import logging
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import store
from surfaces import SURFACES, Stream, Watch
from timing import begin

import eqtoolbox as eq

PAIRS = 9
SETTLED = 200  # steps, by which the first run of every probe is over
Training = Callable[[Stream, Watch], None]


def seconds(train: Training, stream: Stream, watch: Watch) -> tuple[float, float]:
    """Processor time of a whole run, and of its part behind the first steps."""
    torch.manual_seed(0)
    gc.collect()
    start = time.process_time()
    train(stream, watch)
    end = time.process_time()
    return end - start, end - stream.times[0]


def measured(name: str, folder: Path, pairs: int) -> dict[str, Any]:
    """One surface: what was added, in all and behind the set-up, and what the monitor says."""
    train, batches, steps = SURFACES[name]
    for watch in (None, {"run_dir": folder / "warm"}):  # imports and caches
        train(Stream(batches(), SETTLED + 1, (SETTLED,)), watch)
    whole, steady, said = [], [], []
    shortest = {False: math.inf, True: math.inf}
    for pair in range(pairs):
        times = {}
        for watched in (False, True) if pair % 2 else (True, False):
            watch: Watch = {"run_dir": folder / str(pair)} if watched else None
            times[watched] = seconds(train, Stream(batches(), steps, (SETTLED,)), watch)
        (all_without, without), (all_with, with_) = times[False], times[True]
        whole.append(all_with - all_without)
        steady.append(with_ / without - 1)
        shortest = {False: min(shortest[False], without), True: min(shortest[True], with_)}
        said.append(reported(folder / str(pair)))
    return {
        "steps": steps,
        "step_microseconds": 1e6 * shortest[False] / (steps - SETTLED),
        "added_seconds": statistics.median(whole),
        "overhead": shortest[True] / shortest[False] - 1,
        "overhead_median": statistics.median(steady),
        "overheads": steady,
        "idle_microseconds": idle(train, batches, steps),
        "reported": {key: statistics.median(s[key] for s in said) for key in said[0]},
    }


def idle(train: Training, batches: Any, steps: int) -> float:
    """Microseconds that a step takes longer where nothing is ever due."""
    shortest = {False: math.inf, True: math.inf}
    for pair in range(4):
        for watched in (False, True) if pair % 2 else (True, False):
            watch: Watch = {"schedule": eq.at([10**9])} if watched else None
            took = seconds(train, Stream(batches(), steps // 2, (SETTLED,)), watch)[1]
            shortest[watched] = min(shortest[watched], took)
    return 1e6 * (shortest[True] - shortest[False]) / (steps // 2 - SETTLED)


def reported(run_dir: Path) -> dict[str, float]:
    """What the run says about its own cost."""
    run = eq.Run(run_dir)
    names = [n for n in run.names() if n in ("cost/overhead", "cost/setup")]
    return {name: float(run.series(name)[1][-1]) for name in names}


def main() -> None:
    machine = begin()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    chosen = sys.argv[1:] or list(SURFACES)
    results: dict[str, Any] = {}
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            found = results[name] = measured(name, Path(folder), PAIRS)
        print(
            f"{name:18s} step {found['step_microseconds']:6.0f} us  overhead "
            f"{found['overhead']:6.1%}  (median {found['overhead_median']:.1%})  in all "
            f"+{found['added_seconds']:.2f} s  idle "
            f"{found['idle_microseconds']:+.1f} us  reported {found['reported']}",
            flush=True,
        )
    if not sys.argv[1:]:
        print(store("surface_budget", {"machine": machine, **results}))


if __name__ == "__main__":
    main()
