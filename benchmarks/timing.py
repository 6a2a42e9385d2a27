"""Times of several cases, measured in turn so that a busy machine slows all of them alike."""

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of each case in each round; ratios are taken within a round, then their median."""

    rounds: dict[str, list[float]]  # case -> (repeats,)

    def seconds(self, case: str) -> float:
        """Median time of a case."""
        return statistics.median(self.rounds[case])

    def ratio(self, case: str, unit: str) -> float:
        """Median over rounds of time(case) / time(unit)."""
        pairs = zip(self.rounds[case], self.rounds[unit], strict=True)
        return statistics.median(a / b for a, b in pairs)


def interleaved(
    cases: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 2
) -> Times:
    """Run every case once per round, in an order drawn anew: what runs before warms the caches."""
    names, order = list(cases), random.Random(0)
    for _ in range(warmup):
        for name in names:
            cases[name]()
    rounds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()  # else every later collection walks through all of torch
    for _ in range(repeats):
        for name in order.sample(names, len(names)):
            rounds[name].append(timed(cases[name])[0])
        gc.collect()
    gc.unfreeze()
    return Times(rounds=rounds)


def timed(case: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, with the garbage collector off, and what it returned."""
    gc.disable()
    try:
        start = time.perf_counter()
        result = case()
        return time.perf_counter() - start, result
    finally:
        gc.enable()


def begin() -> dict[str, float]:
    """Fix the threads (OMP_NUM_THREADS, else 2); returns what the machine is like at the start."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    return {"load": round(os.getloadavg()[0], 2), "cores": os.cpu_count() or 1}
