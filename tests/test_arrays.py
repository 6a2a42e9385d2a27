"""The array store: what is written comes back exactly, whatever a kill leaves of the file."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from eqtoolbox.record.arrays import Array, frame, frames
from eqtoolbox.report.run import Run
from eqtoolbox.sinks.jsonl import RunDirectory

RNG = np.random.default_rng(0)
EXAMPLES = {
    "float64": RNG.normal(size=7),
    "float32 matrix": RNG.normal(size=(3, 5)).astype(np.float32),
    "big endian": np.arange(4, dtype=">f8"),
    "integers": np.arange(-3, 3),
    "empty": np.zeros(0),
    "scalar": np.float64(2.5),
    "not finite": np.array([np.nan, np.inf, -0.0]),
    "transposed": np.arange(6.0).reshape(2, 3).T,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_array_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    values = EXAMPLES[name]
    (tmp_path / "a.bin").write_bytes(frame(Array(step=3, name="a/b", values=values, segment=2)))
    (back,) = frames(tmp_path / "a.bin")
    assert back is not None
    assert (back.step, back.name, back.segment) == (3, "a/b", 2)
    assert back.values.shape == np.shape(values)
    assert back.values.tobytes() == np.asarray(values).astype(back.values.dtype).tobytes()


def test_words_are_no_array() -> None:
    with pytest.raises(TypeError, match="numbers or booleans, got dtype"):
        frame(Array(step=0, name="a", values=np.array(["x"])))


def three(path: Path) -> list[bytes]:
    parts = [frame(Array(step=i, name="v", values=np.arange(5) + i)) for i in range(3)]
    path.write_bytes(b"".join(parts))
    return parts


def test_every_cut_loses_only_the_frames_that_it_tears(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    parts = three(path)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        found = list(frames(path))
        complete = [a for a in found if a is not None]
        ends = np.cumsum([len(p) for p in parts])
        assert len(complete) == int((ends <= cut).sum())
        torn = cut not in (0, *ends)
        assert (None in found) == torn


def test_reading_goes_on_behind_a_torn_frame_and_a_flipped_bit_is_caught(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    parts = three(path)
    path.write_bytes(parts[0] + parts[1][: len(parts[1]) // 2] + parts[2])
    assert [a and a.step for a in frames(path)] == [0, None, 2]
    spoilt = bytearray(b"".join(parts))
    spoilt[len(parts[0]) + len(parts[1]) - 3] ^= 1
    path.write_bytes(bytes(spoilt))
    assert [a and a.step for a in frames(path)] == [0, None, 2]


def test_a_killed_writer_leaves_every_array_it_had_written(tmp_path: Path) -> None:
    code = f"""
        import numpy as np
        from eqtoolbox.sinks.jsonl import RunDirectory
        run = RunDirectory({str(tmp_path / "run")!r})
        for step in range(10**9):
            run.array(step, "probe/vector", np.full(1000, step))
            print(step, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        while (last := int(writer.stdout.readline())) < 20:
            pass
        os.kill(writer.pid, signal.SIGKILL)
    resumed = RunDirectory(tmp_path / "run", resume=True)
    resumed.array(10**9, "probe/vector", np.zeros(1000))
    resumed.close()
    steps, values = Run(tmp_path / "run").array("probe/vector")
    assert set(range(last)) <= set(steps.tolist())
    assert steps[-1] == 10**9
    assert all((row == step).all() for step, row in zip(steps[:-1], values[:-1], strict=True))


def test_a_run_reads_arrays_by_step_and_names_the_nearest(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    for step, size in ((0, 2), (5, 3), (4, 3), (5, 3)):
        run.array(step, "p/v", np.full(size, float(step)))
    run.close()
    back = Run(tmp_path / "run")
    steps, values = back.array("p/v")
    assert steps.tolist() == [4, 5]
    assert values.tolist() == [[4.0] * 3, [5.0] * 3]
    assert back.arrays() == ["p/v"]
    assert back.torn == 0
    with pytest.raises(KeyError, match="did you mean 'p/v'"):
        back.array("p/w")
