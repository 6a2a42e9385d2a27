"""Published results done again, small: edge of stability, laws, learned symmetries, tuned rates.

Claim: each row says what a paper claims and measured, what the same gives here over several seeds,
and the verdict that these figures decide by a rule which stands in the code. Where a result does
not come out, or comes out the other way, the row says so.

All of it takes five minutes of two cores.

    python benchmarks/reproduce.py [experiment ...]
"""

import sys
import time

import reproduce_acts
import reproduce_curvature
import reproduce_laws
import reproduce_steps
from environment import store
from evidence_cells import summary
from experiments import measured

EXPERIMENTS = (
    *reproduce_curvature.EXPERIMENTS,
    *reproduce_laws.EXPERIMENTS,
    *reproduce_acts.EXPERIMENTS,
    *reproduce_steps.EXPERIMENTS,
)


def main() -> None:
    chosen = [e for e in EXPERIMENTS if not sys.argv[1:] or e.name in sys.argv[1:]]
    start = time.perf_counter()
    rows, found = measured(chosen)
    seconds = round(time.perf_counter() - start)
    for name, row in rows.items():
        print(f"{name}: {row['verdict']}")
        for label, values in row["figures"].items():
            print(f"    {label}: {summary(values)}")
    print(f"{seconds} s")
    if len(chosen) == len(EXPERIMENTS):
        courses = found[reproduce_curvature.edge, 0]["courses"]
        print(store("reproduce", {"seconds": seconds, "rows": rows, "courses": courses}))


if __name__ == "__main__":
    main()
