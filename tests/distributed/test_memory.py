"""Memory: charges take a small part of a shard beside it, heads cut or whole, and keep no other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read of Linux")
@pytest.mark.parametrize("ranks", [4, 6])
def test_charges_take_a_part_of_a_shard(ranks: int) -> None:
    """Of a transformer of 50 million parameters; six ranks cut its heads, which are exchanged."""
    command = [sys.executable, "-m", "tests.distributed.memory", str(ranks)]

    def measured() -> dict[str, float]:
        made = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=True)
        found: dict[str, float] = json.loads(made.stdout)
        return found

    runs = [measured() for _ in range(2)]  # a machine that is busy adds to a peak
    shard = runs[0]["shard"]
    assert shard == pytest.approx(4 * 12 * 1024**2 * 4e-6 / ranks, rel=0.01)
    assert min(r["step"] for r in runs) < 0.7 * shard  # a slab, and one tensor's exchange
    assert min(r["reading"] for r in runs) < shard  # all charges of large groups are looked at
