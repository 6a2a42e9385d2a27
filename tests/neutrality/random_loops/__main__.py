"""The command: `python -m tests.neutrality.random_loops FIRST LAST` judges these seeds."""

import argparse
import json
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from tests.neutrality.random_loops.case import Case
from tests.neutrality.random_loops.verdict import judge

CHUNK = 25  # seeds of one process
LIMIT = 90  # seconds of one case


class OverTime(BaseException):
    """A case took longer than it may."""


def main() -> None:
    """Judge seeds in processes of their own, so that a crash is one finding more."""
    parser = argparse.ArgumentParser(prog="python -m tests.neutrality.random_loops")
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int, help="the seed behind the last one")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--here", action="store_true", help="in this process, as JSON lines")
    given = parser.parse_args()
    if given.here:
        here(range(given.first, given.last))
        return
    counts: Counter[tuple[str, str]] = Counter()
    unmeasured = 0
    chunks = [
        range(first, min(first + CHUNK, given.last))
        for first in range(given.first, given.last, CHUNK)
    ]
    with ThreadPoolExecutor(given.jobs) as pool:
        for rows in pool.map(lambda seeds: list(apart(seeds)), chunks):
            for row in rows:
                case = Case.of(row["seed"])
                counts[case.kind, row["verdict"]] += 1
                unmeasured += row.get("measured") == 0
                if row["verdict"] != "same":
                    what = "; ".join(row["what"])
                    print(f"{row['verdict']} ({case.kind}) {what} | {case.describe()}", flush=True)
    said = [f"{n} {verdict} ({kind})" for (kind, verdict), n in sorted(counts.items())]
    print(f"{given.last - given.first} cases: {', '.join(said)}; {unmeasured} measured nothing")


def apart(seeds: range) -> Iterator[dict[str, Any]]:
    """Rows of these seeds, from other processes; where one dies, the next goes on."""
    while seeds:
        command = [sys.executable, "-m", "tests.neutrality.random_loops", "--here"]
        done = subprocess.run(
            [*command, str(seeds.start), str(seeds.stop)], capture_output=True, text=True
        )
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        yield from rows
        seeds = range(seeds.start + len(rows), seeds.stop)
        if seeds:
            what = [f"exit code {done.returncode}", done.stderr.strip()[-300:]]
            yield {"seed": seeds.start, "verdict": "DIED", "what": what}
            seeds = seeds[1:]


def here(seeds: range) -> None:
    """Print a row of JSON a seed."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _late)
    for seed in seeds:
        signal.alarm(LIMIT)
        row: dict[str, Any] = {"seed": seed}
        try:
            verdict = judge(Case.of(seed))
            found = verdict.unsteady or verdict.differences
            word = "UNSTEADY" if verdict.unsteady else "DIFFERS" if found else "same"
            row |= {"verdict": word, "what": found[:6], "measured": verdict.measured}
        except (Exception, OverTime) as error:
            last = traceback.format_exc().strip().splitlines()[-3:]
            row |= {"verdict": "RAISED", "what": [f"{type(error).__name__}", *last]}
        signal.alarm(0)
        print(json.dumps(row), flush=True)


def _late(*_: Any) -> None:
    raise OverTime(f"more than {LIMIT} s")


if __name__ == "__main__":
    main()
