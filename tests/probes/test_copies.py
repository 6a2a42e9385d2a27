"""What probes take beside the batch, in copies of the parameters, by torch's allocator."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import profile

import eqtoolbox as eq
from eqtoolbox.probes import Conservation, Curvature, Noether
from eqtoolbox.probes.proving import self_test
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import Objective
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.probe import Probe

DEEP = 8  # layers of one width: what is held of a single one is little


def deep(norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for k in range(DEEP):
        layers += [nn.Linear(192 if k else 16, 192), nn.ReLU()]
        layers += [nn.LayerNorm(192)] if norm else []
    return nn.Sequential(*layers, nn.Linear(192, 3))


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 16), torch.randint(3, (4,))


def entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def objective_of(model: nn.Module, loss_fn: Any, batch: Any) -> Objective:
    flags = tuple(m.training for m in model.modules())
    given = {"model": model, "loss_fn": loss_fn, "batch": batch, "flags": flags, "buffers": {}}
    return Objective(random=RandomState(), **given)


def peak(run: Callable[[], Any]) -> int:
    """Bytes that are held at most beside those that were before."""
    with profile(profile_memory=True) as prof:
        run()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return max(accumulate(e.nbytes() for e in events), default=0)


def test_a_self_test_keeps_to_the_room_that_it_is_told_of() -> None:
    model = deep()
    params = {n: p.detach() for n, p in model.named_parameters()}
    size = sum(p.nbytes for p in params.values())
    objective = objective_of(model, entropy, data())
    short, plenty = (
        peak(lambda room=room: self_test(objective, params, timing=False, room=room)) / size  # type: ignore[misc]
        for room in (8.0 * size, math.inf)
    )
    assert short < 8 and 10 < plenty < 20


def taken(probe: Probe, light: bool, norm: bool, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Copies of the parameters that each of three measurements takes."""
    measure, seen = type(probe).measure, list[float]()
    model = deep(norm)
    size = sum(p.nbytes for p in model.parameters())

    def measured(self: Any, snapshot: Any, reference: Any, rng: Any) -> Any:
        rows: list[Any] = []
        given = replace(snapshot, light=light and len(seen) > 0)
        seen.append(peak(lambda: rows.extend(measure(self, given, reference, rng))) / size)
        return rows

    monkeypatch.setattr(type(probe), "measure", measured)
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.01), MemorySink()
    given = {"probes": [Conservation(), probe], "schedule": 1, "budget": None, "memory": None}
    with eq.attach(model, optimizer, sinks=[sink], **given) as monitor:  # type: ignore[arg-type]
        for _ in range(3):
            optimizer.zero_grad()
            monitor.loss(entropy)(model, data()).backward()
            optimizer.step()
    assert {r.status for r in sink.records if r.probe == probe.name} == {"ok"}
    return seen[1:]  # the first one has the self-test


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("light", [False, True])
def test_laws_take_no_more_copies_than_they_say(
    light: bool, norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many families there are: no vector is held for each."""
    assert max(taken(Noether(), light, norm, monkeypatch)) < (7.5 if light else 10.5)


@pytest.mark.parametrize(
    "probe",
    [Curvature(k=1, smallest=False, rows=2), Curvature(k=1, smallest=False, rows=3)],
    ids=["two rows", "three rows"],
)
def test_curvature_takes_no_more_copies_than_it_says(
    probe: Curvature, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = taken(probe, False, False, monkeypatch)
    assert max(found) < probe.copies
    assert probe.rows != 2 or max(found) < 6
