"""Verdict: what differs between a loop alone and the same loop watched."""

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

import eqtoolbox as eq
from eqtoolbox.sinks.memory import MemorySink
from tests.neutrality.random_loops.case import Case
from tests.neutrality.random_loops.data import SAMPLES, Images
from tests.neutrality.random_loops.loop import Attach, Loop
from tests.neutrality.random_loops.objects import UserWarns
from tests.neutrality.random_loops.process import mend, process
from tests.neutrality.table import make

LIMIT = 60  # seconds for loops in threads
Trail = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a case."""

    differences: tuple[str, ...]  # "step 1: loss", ..., or what stopped the watched training
    unsteady: tuple[str, ...]  # differences of two runs that nobody watched
    measured: int  # records that hold a number
    said: str  # by the monitor, in warnings and events


class Monitors:
    """The monitors of one loop: of its model, and of a second model that its loss trains."""

    def __init__(self, loop: Loop, sink: MemorySink) -> None:
        case = loop.case
        given: dict[str, Any] = {"criterion": loop.loss} if case.surface == "criterion" else {}
        if case.surface == "loss_fn":
            given["loss_fn"] = loop.evaluate
        if case.probe_batch:
            images = Images(SAMPLES, 9, case.double, augmented=False)
            given["probe_batch"] = (images.images, torch.tensor(images.labels))
        options = {"budget": None, "schedule": case.every, "sinks": [sink]}
        own = loop.optimizers[0] if len(loop.optimizers) == 1 else loop.optimizers
        self.first = eq.attach(loop.called, own, probes=_probes(case), **options, **given)
        self.all = [self.first]
        if hasattr(loop.loss, "after"):
            second = eq.attach(
                loop.loss.teacher, loop.loss.optimizer, criterion=loop.loss.criterion,
                probes=_probes(case), **options,
            )  # fmt: skip
            self.all.append(second)
        if case.surface == "decorator":
            loop.function = self.first.loss(loop.function)
        self.observe, self.probe_now = self.first.observe, self.first.probe_now

    def close(self) -> None:
        for monitor in self.all:
            monitor.close()


def _probes(case: Case) -> Any:
    return case.probes if isinstance(case.probes, str) else make(case.probes)


def judge(case: Case) -> Verdict:
    """Run the case twice alone and once watched."""
    sink = MemorySink()
    first, _ = trails(case, None)
    again, _ = trails(case, None, together=bool(case.threads))
    changed, said = changes(first, case, lambda loop: Monitors(loop, sink))
    events = [str(event) for event in sink.events]
    return Verdict(
        differences=changed,
        unsteady=tuple(differences(first, again)),
        measured=sum(r.status == "ok" for r in sink.records),
        said=" | ".join([*said, *events]),
    )


def changes(
    alone: list[Trail], case: Case, attach: Attach | None
) -> tuple[tuple[str, ...], list[str]]:
    """What differs from the trails of the loop alone, and what was warned of."""
    try:
        watched, said = trails(case, attach, together=bool(case.threads))
    except Exception as error:
        return (f"training stopped: {type(error).__name__}: {error}"[:300],), []
    return tuple(differences(alone, watched)), said


def trails(
    case: Case, attach: Attach | None, together: bool = False
) -> tuple[list[Trail], list[str]]:
    """Trails of all loops of the case, one after the other or together, and what was warned of."""
    if case.compiled:
        torch._dynamo.reset()
    try:
        with _warnings() as caught:
            loops = _side_by_side(case) if case.threads else [Loop(case)]
            if together:
                found = _threaded(loops, case.threads, attach)
            else:
                found = [loop.run(attach) for loop in loops]
        found[0].append({"process at the end": process()})
    finally:
        mend()
    if not case.threads:  # of other threads, warnings cannot be caught
        own = [str(w.message) for w in caught if issubclass(w.category, UserWarns)]
        found[0].append({"warnings": repr(own)})
    return found, [str(w.message) for w in caught if not issubclass(w.category, UserWarns)]


def differences(one: list[Trail], two: list[Trail]) -> Iterator[str]:
    """Where two lists of trails differ, by loop, step and part."""
    for i, (first, second) in enumerate(zip(one, two, strict=True)):
        loop = f"loop {i}, " if len(one) > 1 else ""
        if len(first) != len(second):
            yield f"{loop}{len(second)} steps instead of {len(first)}: {second[-1:]}"
        for step, (a, b) in enumerate(zip(first, second, strict=False)):
            yield from (f"{loop}step {step}: {part}" for part in a if a[part] != b.get(part))


@contextmanager
def _warnings() -> Iterator[list[Any]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def _side_by_side(case: Case) -> list[Loop]:
    """One loop a thread, each with data and parameters of its own."""
    return [Loop(replace(case, seed=case.seed + 1000 * i)) for i in range(len(case.threads))]


def _threaded(loops: list[Loop], watched: tuple[bool, ...], attach: Attach) -> list[Trail]:
    """All loops at once; what one of them raises ends its trail."""
    start = threading.Barrier(len(loops))

    count = torch.get_num_threads()

    def train(loop: Loop, attach: Attach | None) -> None:
        torch.set_num_threads(count)  # new threads sum in as many parts as there are cores
        start.wait()
        try:
            loop.run(attach)
        except Exception as error:
            loop.trail.append({"raised": f"{type(error).__name__}: {error}"})

    threads = [
        threading.Thread(target=train, args=(loop, attach if seen else None), daemon=True)
        for loop, seen in zip(loops, watched, strict=True)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # each operation waits so long for the others: they mix, and soon
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
    finally:
        sys.setswitchinterval(interval)
    for loop, thread in zip(loops, threads, strict=True):
        if thread.is_alive():
            loop.trail.append({"raised": f"not done after {LIMIT} s"})
    return [loop.trail for loop in loops]
