"""The probe of conservation, fed with shards, records what it records of the whole model."""

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from eqtoolbox.probes import law_noise
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.symmetries import FoundSymmetries
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.shared import Shared
from eqtoolbox.watch.snapshot import ParameterGroup, Snapshot
from eqtoolbox.world.shards import ALONE, Shards
from tests.distributed.simulated import Simulated, first_axis, held, layouts, mixed_axes
from tests.laws.members import MEMBERS, point

Params = Mapping[str, Tensor]
STEPS = [point(k) for k in range(4)]  # theta at each step
SLOPES = [point(10 + k) for k in range(3)]  # and the gradient there


class Known:
    """In place of an objective: a loss of which nothing but the gradient is asked."""

    identity = ()

    def isolated(self) -> Any:
        return nullcontext()

    def unmixed(self) -> "Known":
        return self


@pytest.fixture(autouse=True)
def gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """One and the same gradient wherever it is asked for, and no float64 to compare it with."""
    monkeypatch.setattr(law_noise, "rounding", lambda *given: {})
    monkeypatch.setattr(law_noise, "replayed_gradient", lambda part, at: dict(at))
    monkeypatch.setattr(Snapshot, "slope", lambda self, objective: dict(self.gradient or {}))
    monkeypatch.setattr(Snapshot, "within", lambda self, objective, *given, **named: objective)
    found = FoundSymmetries(tuple(replace(m, status="verified") for m in MEMBERS.values()))
    monkeypatch.setattr(FoundSymmetries, "of", lambda snapshot: found)


def snapshots(shards: Shards) -> Iterator[Snapshot]:
    """Three steps, of what is held here."""
    shared = Shared()
    cut = lambda p: held(p, shards.layout) if shards.layout else dict(p)
    names = tuple(STEPS[0])
    groups = (
        ParameterGroup(names=names[:4], lr=0.1, weight_decay=0.01, momentum=0.0),
        ParameterGroup(names=names[4:], lr=0.2, weight_decay=0.0, momentum=0.0),
    )
    for step in range(3):
        yield Snapshot(
            step=step,
            before=cut(STEPS[step]),
            after=cut(STEPS[step + 1]),
            gradient=cut(SLOPES[step]),
            groups=groups,
            optimizer="SGD",
            state={},
            training=Known(),  # type: ignore[arg-type]
            measured=Known(),  # type: ignore[arg-type]
            shards=shards,
            shared=shared,
        )


def records(shards: Shards) -> list[Measurement]:
    """What the probe says of these steps."""
    probe, found, ledger = Conservation(growth=0), list[Measurement](), None
    for snapshot in snapshots(shards):
        rng = torch.Generator().manual_seed(0)
        ledger = ledger or probe.reference(snapshot, rng)
        found += probe.measure(snapshot, ledger, rng)
    return found


@pytest.mark.parametrize("axes", [first_axis, mixed_axes])
def test_records_from_shards_are_those_of_the_whole_model(axes: Any) -> None:
    """Drift, its worst unit, laws, causes, their shares and closure: all of them, to rounding."""
    expected = records(ALONE)
    assert len({m.quantity for m in expected}) > 15
    for ranks in (2, 3):
        for found in Simulated(ranks=ranks).run(records, layouts(STEPS[0], ranks, axes)):
            for one, other in zip(found, expected, strict=True):
                assert one.quantity == other.quantity
                assert (one.target, one.note) == (other.target, other.note)
                near = pytest.approx(other.value, rel=1e-9, abs=1e-12, nan_ok=True)
                assert one.value == near, (one.quantity, one.target)


def test_what_one_rank_loses_all_ranks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter that is not finite in one shard stops the probe on every rank, by its name."""
    lost = dict(STEPS[2])
    lost["w"] = lost["w"].clone()
    lost["w"][3, 0] = math.nan  # on the last rank alone
    monkeypatch.setitem(globals(), "STEPS", [*STEPS[:2], lost, STEPS[3]])

    def fails(shards: Shards) -> str:
        with pytest.raises(FloatingPointError) as failed:
            records(shards)
        return str(failed.value)

    said = Simulated(ranks=2).run(fails, layouts(STEPS[0], 2))
    assert said == ["the step made w NaN or infinite"] * 2
