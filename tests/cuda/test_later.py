"""Charges on a device that works on its own: nobody waits for it as a step ends."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.record.record import Record
from eqtoolbox.watch import later
from tests.cuda.loops import STEPS, Pictures, Training, Words, same, sgd, words


def numbers(records: list[Record]) -> dict[tuple[int, str], float]:
    return {(r.step, r.name): r.value for r in records if not r.name.startswith("cost/")}


@pytest.mark.parametrize(
    "training",
    [
        Training(model=Pictures, optimizer=sgd),
        Training(model=Words, optimizer=sgd, batches=words),
        Training(model=Pictures, optimizer=lambda m: torch.optim.AdamW(m.parameters(), fused=True)),
    ],
    ids=["pictures", "words", "fused"],
)
@pytest.mark.parametrize("schedule", [1, 2])
def test_it_waits_for_nothing_and_says_the_same(
    gpu: str, training: Training, schedule: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, launched = later.ReadLater._launch, list[int]()

    def strict(self: Any, step: int, before: Any) -> bool:
        if launched:  # the first time indices are brought to the device
            torch.cuda.set_sync_debug_mode("error")
        try:
            made = launch(self, step, before)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        launched.extend([step] if made else [])
        return made

    options = {"schedule": schedule}
    given = replace(training, device=gpu, probes=[Conservation()], options=options)
    without, _ = given.run(attached=False)
    monkeypatch.setattr(later.ReadLater, "_launch", strict)
    with_, records = given.run(attached=True)
    assert len(launched) == (STEPS - 1) // schedule, "some of it was waited for"
    assert same(with_, without)
    monkeypatch.setattr(later, "works_apart", lambda tensors: False)
    _, at_once = given.run(attached=True)
    found, expected = numbers(records), numbers(at_once)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        near = math.isclose(found[name], value, rel_tol=1e-9, abs_tol=1e-12)
        assert near or (math.isnan(found[name]) and math.isnan(value)), name
