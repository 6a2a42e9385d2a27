"""Claim: weights tied before training hold on turned digits, and exported cost what plain ones do.

The rows of `enforced.py` that are about tied weights, on digits alone.

    OMP_NUM_THREADS=1 python benchmarks/tied.py
"""

import torch
from enforced import digits, rows
from environment import store

NAMES = [
    "plain", "averaged", "tied", "tied at equal weights", "tied after training",
    "plain of that width",
]  # fmt: skip

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(store("tied", {"digits": rows(digits(), NAMES)}))
