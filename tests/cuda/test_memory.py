"""A device that runs full: a probe gives up, and the training ends as it would have."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.record.record import Record
from tests.cuda.loops import Pictures, Training, same, sgd

MIB = 2**20


@contextmanager
def room_for(mib: int, device: str) -> Iterator[None]:
    """Scope in which this process may hold no more than what it holds and so much beside."""
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(device).total_memory
    held = torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction((held + mib * MIB) / whole, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


class Wide(Pictures):
    """The same with activations that a product keeps several times."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.repeat_interleave(64, 2).repeat_interleave(64, 3))


def statuses(records: list[Record]) -> set[str]:
    return {r.status for r in records if r.name.startswith("curvature")}


def test_a_probe_without_room_is_given_up_and_training_goes_on(gpu: str) -> None:
    training = Training(
        model=Wide, optimizer=sgd, device=gpu, probes=[Curvature()], options={"on_error": "warn"}
    )
    without, _ = training.run(attached=False)
    torch.cuda.reset_peak_memory_stats(gpu)
    training.run(attached=False)
    own = torch.cuda.max_memory_allocated(gpu) // MIB + 64
    with room_for(own, gpu):
        with_, records = training.run(attached=True)
    assert same(with_, without)
    assert statuses(records) <= {"failed", "ok"}
    assert any("memory" in r.note for r in records), "nothing ran out: the test shows nothing"


def test_with_room_it_is_measured(gpu: str) -> None:
    """Negative control of the test above."""
    training = Training(model=Wide, optimizer=sgd, device=gpu, probes=[Curvature()])
    assert "failed" not in statuses(training.run(attached=True)[1])


def test_between_due_steps_the_device_holds_what_training_holds(gpu: str) -> None:
    """A due step of the light preset leaves less than a model behind."""
    training = Training(model=Pictures, optimizer=sgd, device=gpu, probes="light")
    held = []
    for attached in (False, True):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(gpu)
        kept = replace(training).run(attached=attached)
        held.append(torch.cuda.memory_allocated(gpu) - before)
        del kept
    assert held[1] <= held[0] + 1 * MIB
