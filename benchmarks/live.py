"""What live views cost: the index of fifty runs until it can be painted, and a look at a long run.

Claim: the first answer with fifty runs of 10 000 records each takes less than a second of one
core, none of them read before; the next one, and the question whether anything changed, a few
hundredths. A look at a run that grew by one step takes a small part of reading it whole.

    python benchmarks/live.py
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from environment import store

sys.path.insert(0, str(Path(__file__).parents[1]))
from eqtoolbox.report import Run
from eqtoolbox.report.live.card import Cards
from eqtoolbox.report.live.glance import Watching
from eqtoolbox.report.live.growing import Growing
from eqtoolbox.report.live.served import served
from tests.report.runs import EVENTS, SYMMETRIES, rich_records, write_run

RUNS, LOOKS, TIMES = 50, 30, 7


def processor(act: Callable[[], Any]) -> float:
    """Seconds of processor time, of all threads."""
    began = time.process_time()
    act()
    return time.process_time() - began


def index(root: Path) -> dict[str, float]:
    """Seconds of the answers about fifty runs; findings, made in the background, not counted."""
    found: dict[str, list[float]] = {"first": [], "again": [], "versions": []}
    for _ in range(TIMES):
        browser = served(root).test_client()
        for name, url in {"first": "/", "again": "/", "versions": "/versions"}.items():
            found[name].append(processor(partial(browser.get, url)))
    return {name: round(statistics.median(times), 4) for name, times in found.items()}


def looks(home: Path) -> dict[str, float]:
    """Seconds of reading a run whole, of reading on by one step, and of a view after it."""
    whole = [processor(lambda: Run(home).findings()) for _ in range(TIMES)]
    run, watching = Growing(home), Watching(Growing(home))
    watching.look()
    grown, seen = [], []
    for step in range(LOOKS):
        with (home / "records.jsonl").open("a") as file:
            row = {"step": 1000 + step, "name": "training/loss", "value": 0.17}
            file.write(json.dumps(row) + "\n")
        grown.append(processor(run.more))
        seen.append(processor(watching.look))
        assert run.last_step == watching.run.last_step == 1000 + step
    return {
        "read whole, with findings": round(statistics.median(whole), 4),
        "read on by a step": round(statistics.median(grown), 5),
        "read on and shown": round(statistics.median(seen), 5),
    }


if __name__ == "__main__":
    Cards._begin = lambda self: None  # type: ignore[method-assign]  # measured by itself
    with tempfile.TemporaryDirectory() as folder:
        rows = rich_records()
        for i in range(RUNS):
            home = Path(folder, f"group{i % 5}", f"run{i}")
            write_run(home, rows, events=EVENTS, symmetries=SYMMETRIES, finished=None)
        results = {"records of a run": len(rows), "index": index(Path(folder)), "look": looks(home)}
        print(json.dumps(results, indent=1))
        store("live", results)
