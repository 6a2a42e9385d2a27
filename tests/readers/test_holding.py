"""A run directory belongs to one run at a time, and nothing of a run goes anywhere else."""

import errno
import fcntl
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.jsonl import RunDirectory

KILLS = int(os.environ.get("EQTOOLBOX_KILLS", "4"))  # 100 are tried by hand


def row(step: int) -> Record:
    return Record(step=step, name="a/b", value=float(step))


def contents(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.iterdir()}


def attached(home: str | Path, **options: object) -> eq.Monitor:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return eq.attach(model, optimizer, probes="light", run_dir=home, **options)  # type: ignore[arg-type]


def test_an_empty_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="run_dir must be a path or None, got ''"):
        attached("")
    assert list(tmp_path.iterdir()) == []
    attached(".").close()
    assert (tmp_path / "run.json").exists()


# -- one run at a time -----------------------------------------------------------------------------


def test_a_second_monitor_of_one_process_is_refused_until_the_first_is_closed(
    tmp_path: Path,
) -> None:
    first = attached(tmp_path / "run")
    for resume in (True, False):
        with pytest.raises(FileExistsError, match=r"being written by another|unfinished run"):
            attached(tmp_path / "run", resume=resume)
    first.close()
    attached(tmp_path / "run", resume=True).close()
    assert eq.Run(tmp_path / "run").info["segments"] == 2


HOLDER = """
import sys, time
from eqtoolbox.sinks.jsonl import RunDirectory
store = RunDirectory(sys.argv[1])
if len(sys.argv) > 2:
    import os
    ran, runs = os.pipe()
    if os.fork() == 0:
        os.write(runs, b"!")
        time.sleep(60)
    os.read(ran, 1)  # a child that has not run yet has let go of nothing
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("forks", [(), ("with a child that lives on",)])
def test_a_second_process_is_refused_until_the_first_dies(
    tmp_path: Path, forks: tuple[str, ...]
) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), *forks]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FileExistsError, match=r"written by another monitor; close\(\)"):
            RunDirectory(tmp_path / "run", resume=True)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        RunDirectory(tmp_path / "run", resume=True).close()
        if forks:
            os.killpg(holder.pid, signal.SIGKILL)


def test_a_file_system_without_locks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no locks")

    RunDirectory(tmp_path / "locks").close()
    monkeypatch.setattr(fcntl, "flock", unsupported)
    first = RunDirectory(tmp_path / "none")
    second = RunDirectory(tmp_path / "none", resume=True)
    with pytest.raises(FileExistsError, match="that of another run by now"):
        first.describe(seed=1)
    second.close()
    messages = [e["message"] for e in eq.Run(tmp_path / "none").events]
    assert (
        messages == ["this file system has no locks: no second run must write here meanwhile"] * 2
    )
    assert eq.Run(tmp_path / "locks").events == []
    with pytest.raises(FileExistsError, match="that of another run by now"):
        first.close()


# -- removed, replaced, reused ---------------------------------------------------------------------


def emptied(home: Path) -> None:
    for path in home.iterdir():
        path.unlink()


@pytest.mark.parametrize("gone", [shutil.rmtree, emptied, lambda home: home.rename(f"{home}2")])
def test_nothing_is_written_into_the_run_that_took_the_place(
    tmp_path: Path, gone: Callable[[Path], object]
) -> None:
    home = tmp_path / "run"
    old = RunDirectory(home)
    old.write(row(0))
    gone(home)
    moved = tmp_path / "run2"
    new = RunDirectory(home)
    before = contents(home)
    for attempt in (
        lambda: old.write(row(1)),
        lambda: old.event(1, "info", "x", "m"),
        lambda: old.array(1, "a/b", np.zeros(3)),
        lambda: old.describe(seed=1),
        old.close,
    ):
        if moved.exists():
            attempt()
        else:
            with pytest.raises(FileNotFoundError, match="was removed while it was written"):
                attempt()
    assert contents(home) == before
    new.write(row(5))
    new.close()
    assert eq.Run(home).series("a/b")[0].tolist() == [5]
    if moved.exists():
        kept = eq.Run(moved)
        assert kept.series("a/b")[0].tolist() == [0, 1]
        assert kept.arrays() == ["a/b"]
        assert kept.info["finished"]


@pytest.mark.parametrize("file", ["records.jsonl", "events.jsonl", "arrays.bin"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_removed_is_noticed(tmp_path: Path, file: str, replaced: bool) -> None:
    store = RunDirectory(tmp_path / "run")
    writes = {
        "records.jsonl": lambda: store.write(row(0)),
        "events.jsonl": lambda: store.event(0, "info", "x", "m"),
        "arrays.bin": lambda: store.array(0, "a/b", np.zeros(3)),
    }
    writes[file]()
    (tmp_path / "run" / file).unlink()
    if replaced:
        (tmp_path / "run" / file).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=rf"{file} was removed while it was written"):
        writes[file]()
    assert not replaced or (tmp_path / "run" / file).read_bytes() == b""
    store._release()


def test_training_goes_on_when_arrays_are_removed_and_the_user_is_told_once(tmp_path: Path) -> None:
    monitor = attached(tmp_path / "run")
    monitor._journal.array("a/b", np.zeros(3))
    (tmp_path / "run" / "arrays.bin").unlink()
    with pytest.warns(RuntimeWarning, match=r"arrays\.bin was removed while it was written"):
        monitor._journal.array("a/b", np.zeros(3))
    monitor.close()


# -- forks -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("child_closes", [False, True])
def test_a_forked_child_writes_nothing(tmp_path: Path, child_closes: bool) -> None:
    store = RunDirectory(tmp_path / "run")
    store.write(row(0))
    before = contents(tmp_path / "run")
    child = os.fork()
    if child == 0:
        try:
            store.write(row(1))
            store.event(1, "info", "x", "m")
            store.array(1, "a/b", np.zeros(3))
            store.describe(seed=3)
            store.flush()
            if child_closes:
                store.close()
            del store
            gc.collect()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert contents(tmp_path / "run") == before
    store.write(row(2))
    store.close()
    run = eq.Run(tmp_path / "run")
    assert run.series("a/b")[0].tolist() == [0, 2]
    assert run.info["finished"]


# -- what survives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [False, True])
def test_rows_are_on_the_disk_at_each_measured_step_if_asked(
    tmp_path: Path, sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), real(file)))
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = nn.MSELoss()
    monitor = eq.attach(
        model, optimizer, criterion=criterion, probes="light", schedule=2, budget=None,
        run_dir=tmp_path / "run", sync=sync,
    )  # fmt: skip
    counts = []
    for _ in range(4):
        before = len(synced)
        criterion(model(torch.randn(4, 2)), torch.randn(4, 2)).backward()
        optimizer.step()
        counts.append(len(synced) - before)
    monitor.close()
    assert [count > 0 for count in counts] == [sync, False, sync, False]


WRITER = """
import sys
import numpy as np
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.jsonl import RunDirectory
store = RunDirectory(sys.argv[1], resume=True)
for step in range(store.next_step, 10**9):
    store.write_all([Record(step=step, name=f"a/{i}", value=1.0, note="n" * i) for i in range(50)])
    store.array(step, "a/v", np.full(200, step))
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_loses_no_row_that_was_acknowledged(tmp_path: Path) -> None:
    """One run, killed and resumed."""
    home, draw, steps = tmp_path / "run", random.Random(0), 0
    for kill in range(KILLS):
        command = [sys.executable, "-c", WRITER, str(home)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(draw.randint(1, 300)):
                steps = int(writer.stdout.readline())
            os.kill(writer.pid, signal.SIGKILL)
            said = [int(line) for line in writer.stdout.read().splitlines() if line]
        steps = max([steps, *said[:-1]])  # the last line may be torn
        run = eq.Run(home)
        for i in range(50):
            assert set(run.series(f"a/{i}")[0]) >= set(range(steps + 1)), f"kill {kill}"
        assert set(run.array("a/v")[0]) >= set(range(steps + 1)), f"kill {kill}"
    facts = json.loads((home / "run.json").read_text())
    assert facts["segments"] == KILLS
