"""Claim: the numbers of e3nn and lie-deriv at a like price, and none that mislead.

First the same models on the same inputs and as many group elements: numbers side by side, times of
one probe interleaved, as median ratios; our first probe of a shape also checks the actions, which
is told apart. Then cases whose truth is known in closed form, where a rival misleads. e3nn runs
itself; lie-deriv is its formulas, derived anew (`lie_deriv_formulas.py`).

    python benchmarks/equivariance_rivals.py        # needs: pip install e3nn
"""

import warnings
from importlib.metadata import version
from typing import Any

from e3nn_cases import misleading_e3nn, side_by_side
from environment import store
from lie_deriv_cases import lie_derivatives
from timing import begin


def main() -> None:
    warnings.simplefilter("ignore")
    machine = begin()
    results = {
        "machine": machine,
        "rivals": {"e3nn": version("e3nn"), "lie-deriv": "formulas of arXiv 2210.02984"},
        "side by side": side_by_side(),
        "e3nn misleads": misleading_e3nn(),
        "lie-deriv": lie_derivatives(),
    }
    for title, table in results.items():
        if isinstance(table, list):
            print(f"\n{title}")
            for row in table:
                print("  " + row["case"])
                for key, value in row.items():
                    if key != "case" and value != "":
                        print(f"      {key:24s} {_words(value)}")
    print(store("equivariance_rivals", results))


def _words(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
