"""A long run is read in little memory: rows lie in columns, and lines are read one at a time."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROWS = 300_000  # a million, by the same count of bytes a row, stays below 300 MiB
ALLOWED = 70  # MiB; a record with a dict of its own for each row takes 180

CODE = r"""
    import pathlib, re, resource, sys
    import scipy.special  # which the report loads when it needs it, whatever a run's length: 25 MiB
    import eqtoolbox as eq
    from eqtoolbox.report import summary_text
    from eqtoolbox.report.page import content
    def peak():
        status = pathlib.Path("/proc/self/status")  # rusage counts the parent before exec, too
        if status.exists():
            return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before = peak()
    run = eq.Run(sys.argv[1])
    assert len(run.rows()) == int(sys.argv[2]), repr(run)
    summary_text(run), content(run)
    print(peak() - before)
    kept = run.records()
    print(peak() - before)
"""


def mib(home: Path, rows: int) -> list[float]:
    """What reading takes, and that with records for all."""
    command = [sys.executable, "-c", textwrap.dedent(CODE), str(home), str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return [float(line) for line in done.stdout.split()]


def test_reading_a_long_run_takes_little_memory_and_records_for_all_take_much(
    tmp_path: Path,
) -> None:
    pytest.importorskip("resource")
    (tmp_path / "run.json").write_text('{"format": 1, "segments": 1, "dtype": "float32"}')
    names = ["training/loss", "curvature/sharpness", "curvature/stability"]
    names += [f"conservation/drift/f{i}" for i in range(3)]
    names += [f"equivariance/relative_error/s{i}" for i in range(4)]
    measured = [(step, name) for step in range(ROWS // 20) for name in names]
    losses = [(step, "training/loss") for step in range(ROWS // 20, ROWS // 20 + ROWS // 2)]
    with (tmp_path / "records.jsonl").open("w") as file:
        for step, name in measured + losses:
            file.write(
                f'{{"step": {step}, "name": "{name}", "value": {1 / (step + 1)}, '
                f'"stderr": 1e-3, "floor": 1e-7, "unit": "1", "status": "ok", "mode": "eval", '
                f'"seconds": 0.01, "note": "element {step % 7000}", "segment": 0}}\n'
            )
    reading, with_records = mib(tmp_path, ROWS)
    assert reading < ALLOWED < with_records
