"""Ranks: functions run by several processes over gloo, what each returns brought back."""

import datetime
import gc
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from filelock import FileLock

LIMIT = 120  # seconds for all that the processes of one call do
PRELOAD = [  # what every rank would import for itself
    "tests.distributed.engine", "torch._dynamo", "eqtoolbox.attach.attach", "eqtoolbox.probes",
    "scipy.special",
]  # fmt: skip
T = TypeVar("T")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], T]) -> T:
    """What `make(folder)` returns, made by one of pytest's workers and read by the others."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers
    made, folder = root / f"{name}.made", root / name
    with FileLock(root / f"{name}.lock"):
        if not made.exists():
            folder.mkdir(exist_ok=True)
            made.write_bytes(pickle.dumps(make(folder)))
    found: T = pickle.loads(made.read_bytes())
    return found


def on_ranks(size: int, function: Callable[..., Any], *given: Any) -> list[Any]:
    """`function(rank, *given)` on each of so many ranks; what they return, by rank.

    Raises:
        AssertionError: one of them raised, or did not end in time.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    answers: Any = context.SimpleQueue()
    port = _free_port()
    workers = [
        context.Process(
            target=_work, args=(rank, size, port, answers, function, given), daemon=True
        )
        for rank in range(size)
    ]
    for worker in workers:
        worker.start()
    found: dict[int, Any] = {}
    ends = datetime.datetime.now() + datetime.timedelta(seconds=LIMIT)
    while len(found) < size and datetime.datetime.now() < ends:
        if answers.empty():
            workers[0].join(0.05)
            if not any(w.is_alive() for w in workers) and answers.empty():
                break
            continue
        rank, answer, error = answers.get()
        assert not error, f"rank {rank} of {size}:\n{error}"
        found[rank] = pickle.loads(answer)
    for worker in workers:
        worker.join(5)
        worker.kill()
    assert len(found) == size, f"ranks {sorted({*range(size)} - found.keys())} did not answer"
    return [found[rank] for rank in range(size)]


def _work(rank: int, size: int, port: int, answers: Any, function: Any, given: Any) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
        "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
    }  # fmt: skip
    torch.set_num_threads(1)
    gc.freeze()  # no search for garbage or for a holder walks through what was loaded beforehand
    try:
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=LIMIT))
        made = pickle.dumps(function(rank, *given))  # by value: memory that is shared ends with us
        answers.put((rank, made, ""))
    except BaseException:
        answers.put((rank, b"", traceback.format_exc()))
    finally:
        sys.stdout.flush()
        if dist.is_initialized():
            dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
